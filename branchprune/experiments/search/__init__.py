"""Many runs from one dense model, whose settings Optuna suggests."""

"""Many runs from one dense model, at equal budgets."""

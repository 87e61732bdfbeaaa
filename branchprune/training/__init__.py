"""LightningModules, losses, distillation and optimizers."""

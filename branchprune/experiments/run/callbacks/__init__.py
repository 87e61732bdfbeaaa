"""Lightning callbacks of a run's stages: checkpoints, progress, cost, images."""

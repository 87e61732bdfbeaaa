"""One run: dense training, pruning, collapse, check, measurements."""

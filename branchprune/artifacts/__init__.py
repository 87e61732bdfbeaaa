"""Files that hold a model: weights, and the widths they belong to."""

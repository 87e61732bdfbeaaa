"""A graph of a model that is safe to read."""

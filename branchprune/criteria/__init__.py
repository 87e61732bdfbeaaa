"""Which channels stay: scores of channels, and what they are computed from."""

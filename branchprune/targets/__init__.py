"""Widths from a target: error curves, latency, selection, correction."""

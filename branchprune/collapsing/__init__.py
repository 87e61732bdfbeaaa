"""Folding the twin into its neighbours, and the check in float64 that nothing changed."""

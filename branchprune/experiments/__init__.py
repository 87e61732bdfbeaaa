"""Whole experiments: one run, or many at equal budgets, in files that survive a kill."""

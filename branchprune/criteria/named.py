"""The criteria that `attach` and configurations find by name."""

from __future__ import annotations

from branchprune.criteria.column_selection import reconstruction
from branchprune.criteria.gradients import taylor
from branchprune.criteria.scores import bn_scale, geometric_median, l1, l2, random_choice
from branchprune.criteria.selection import Criterion

CRITERIA: dict[str, Criterion] = {
    "random": random_choice,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "geometric_median": geometric_median,
    "taylor": taylor,
    "reconstruction": reconstruction,
}

GRADED = ("taylor",)
"""Those that need gradients of a loss."""
CALIBRATED = (*GRADED, "reconstruction")
"""Those that score channels by some batches."""

"""The criteria that `attach` and configurations find by name."""

from __future__ import annotations

from branchprune.criteria.activations import apoz, entropy, hrank
from branchprune.criteria.column_selection import reconstruction
from branchprune.criteria.gradients import taylor
from branchprune.criteria.scores import (
    bn_scale,
    cosine,
    geometric_median,
    l0,
    l1,
    l2,
    linf,
    random_choice,
)
from branchprune.criteria.selection import Criterion
from branchprune.errors import PruneError

CRITERIA: dict[str, Criterion] = {
    "random": random_choice,
    "l0": l0,
    "l1": l1,
    "l2": l2,
    "linf": linf,
    "bn_scale": bn_scale,
    "geometric_median": geometric_median,
    "cosine": cosine,
    "apoz": apoz,
    "entropy": entropy,
    "hrank": hrank,
    "taylor": taylor,
    "reconstruction": reconstruction,
}

GRADED = ("taylor",)
"""Those that need gradients of a loss."""
FIRST_ORDER = (*GRADED, "fisher")
"""Those that see nothing of a loss without a slope, such as the distance of a model to itself."""
MADE = {
    "fisher": "bp.fisher(model, losses)",
    "obd": "bp.obd(model, losses)",
    "discrimination": "bp.discrimination(model, plan, batches)",
}
"""Those that are made of losses or of classes, which `attach` does not know, and how."""
CLASSED = ("discrimination",)
"""Those that need examples of several classes."""
LABELLED = (*GRADED, *MADE)
"""Those that need more than inputs."""
CALIBRATED = (*LABELLED, "apoz", "entropy", "hrank", "reconstruction")
"""Those that score channels by some batches."""


def criterion_of(init: str | Criterion, argument: str = "init") -> Criterion:
    """Return the criterion that is given, itself or by its name.

    Args:
        init: A function, or one of `CRITERIA`.
        argument: What errors call it.

    Raises:
        PruneError: There is no such criterion.
    """
    if callable(init):
        return init
    named = isinstance(init, str)
    if named and init in MADE:
        raise PruneError(f"{argument} (={init!r}) is made of data: {argument}={MADE[init]}")
    if not named or init not in CRITERIA:
        known = ", ".join(map(repr, CRITERIA))
        raise PruneError(f"{argument} (={init!r}) must be {known} or a function of GroupWeights")
    return CRITERIA[init]

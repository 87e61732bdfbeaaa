"""The start of the narrow model: channels chosen by reconstruction, ends by least squares."""

from __future__ import annotations

from torch import Tensor, nn

from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.planning.plan import Plan

RIDGE = 0.1
"""Of the least squares; of 0.001 to 3 this and 0.03 had the best validation scores, on one VGG."""
LEAST, MOST, LARGEST = 32, 256, 2**23
"""Images that are looked at, at least and at most, and in between how many numbers they may be."""


def fitted_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the branch alone, every α at 0, as close to the model as a linear fit brings it.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose and fit (N, …); the first of them count.
    """
    some = looked_at(images)
    blended = attach(model, planned, "reconstruction", batches=[some])
    blended = fit_expand(blended, [some], RIDGE)
    blended.alpha = 0.0
    return blended


def looked_at(images: Tensor) -> Tensor:
    """Return the first of the images (N, …), as many as choices and fits are made on."""
    return images[: min(MOST, max(LEAST, LARGEST // images[0].numel()))]

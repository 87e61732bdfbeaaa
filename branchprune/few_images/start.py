"""The start of the narrow model: channels chosen by reconstruction, ends by least squares."""

from __future__ import annotations

from torch import Tensor, nn

from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.planning.plan import Plan

MOST = 256
"""Images that are looked at."""


def fitted_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the branch alone, every α at 0, as close to the model as a linear fit brings it.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose and fit (N, …); the first of them count.
    """
    batch = images[:MOST]
    blended = attach(model, planned, "reconstruction", batches=[batch])
    blended = fit_expand(blended, [batch])
    blended.alpha = 0.0
    return blended

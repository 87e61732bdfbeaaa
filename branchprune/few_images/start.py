"""The start of the narrow model: channels chosen by reconstruction, ends cut or fitted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.planning.plan import Plan

MOST = 256
"""Images that are looked at."""
LEAST, LARGEST = 16, 2**21
"""Of these at a time: how many at least, and else how many numbers, for the memory they take."""


def chosen_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the branch alone, every α at 0: the channels from which the others follow best.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose (N, …); the first of them count.
    """
    blended = attach(model, planned, "reconstruction", batches=_batches(images))
    blended.alpha = 0.0
    return blended


def fitted_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the same as close to the model as a linear fit brings it.

    That is for what learns nothing: after fifty steps the cut channels are ahead of it.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose and fit (N, …); the first of them count.
    """
    return fit_expand(chosen_start(model, planned, images), _batches(images))


def _batches(images: Tensor) -> Sequence[Tensor]:
    count = max(LEAST, LARGEST // images[0].numel())
    return images[:MOST].split(count)

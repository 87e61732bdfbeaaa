"""Which learning rate: that with which the loss is the smallest after a short run."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import fmean

from torch import Tensor, nn

from branchprune.errors import Failed
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student

RATES = (0.01, 0.003, 0.001, 0.0003)
SHORT, SHARE = 40, 0.1
"""Steps of a short run, which is one cycle of the learning rate, too: at most, and as a share of
those that will be made."""
FEW, UNTRIED = 100, 0.003
"""Of fewer steps the share is too short to tell rates apart, and this one is taken."""
LAST = 5
"""Steps at its end whose mean loss counts."""


def short_run(steps: int) -> int:
    """Return how many steps a short run has, for as many as will be made; 0: there is none."""
    return min(SHORT, int(SHARE * steps)) if steps >= FEW else 0


def tried(steps: int) -> int:
    """Return how many steps all short runs have together, for as many as will be made."""
    return len(RATES) * short_run(steps)


def best_rate(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> float:
    """Return the learning rate of `RATES` that comes to the smallest loss in a short run.

    The runs see the same batches, and are thrown away. Of few steps none is made.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps will be made.

    Raises:
        Failed: No loss stays finite.
    """
    short = short_run(how.steps)
    if not short:
        return UNTRIED
    runs = [replace(how, steps=short, learning_rate=rate) for rate in RATES]
    losses = [_loss(student, dense, images, run) for run in runs]
    if min(losses) == math.inf:
        raise Failed(f"the loss is not finite, whatever the learning rate (down to {RATES[-1]})")
    return RATES[losses.index(min(losses))]


def _loss(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> float:
    seen: list[float] = []
    try:
        learn(copy.deepcopy(student), dense, images, how, lambda *at: seen.append(at[2]))
    except Failed:
        return math.inf
    return fmean(seen[-LAST:])

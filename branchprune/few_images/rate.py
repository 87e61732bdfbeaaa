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
SHORT = 40
"""Steps of a short run, which is one cycle of the learning rate, too."""
LAST = 5
"""Steps at its end whose mean loss counts."""


def best_rate(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> float:
    """Return the learning rate of `RATES` that comes to the smallest loss in a short run.

    The runs see the same batches, and are thrown away.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps will be made.

    Raises:
        Failed: No loss stays finite.
    """
    runs = [replace(how, steps=SHORT, learning_rate=rate) for rate in RATES]
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

"""How many steps fit into a time, and in which precision a step is faster here."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student

WARM_UP, TIMED = 2, 4
"""Steps of a rehearsal before the clock runs, and with it."""


def seconds_a_step(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> float:
    """Return how long a step takes, by some steps of a copy that is then thrown away.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps will be made.
    """
    began: list[float] = []
    rehearsed = replace(how, steps=WARM_UP + TIMED)
    learn(
        copy.deepcopy(student),
        dense,
        images,
        rehearsed,
        lambda *_: began.append(time.perf_counter()),
    )
    return (began[-1] - began[WARM_UP - 1]) / TIMED


def faster_precision(
    student: Student, dense: nn.Module, images: Tensor, how: Learning
) -> tuple[torch.dtype, float]:
    """Return the dtype in which steps are faster here, float32 or bfloat16, and their seconds."""
    found = {
        dtype: seconds_a_step(student, dense, images, replace(how, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    return min(found.items(), key=lambda item: item[1])

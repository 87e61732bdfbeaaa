"""What a step of learning costs: seconds here, and multiply-adds."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student

DTYPES = (torch.float32, torch.bfloat16)
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


def macs_a_step(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> int:
    """Return the multiply-adds of a step, forward and backward, the dense model's included.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps will be made.
    """
    with FlopCounterMode(display=False) as counter:
        learn(copy.deepcopy(student), dense, images, replace(how, steps=1))
    return int(counter.get_total_flops()) // 2

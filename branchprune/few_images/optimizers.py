"""What moves the weights of a narrow model that learns from few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from branchprune.training.muon import Muon

Name = Literal["adamw", "muon", "sgd"]


def optimizer(
    name: Name,
    weights: Sequence[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> tuple[Optimizer, LRScheduler]:
    """Return an optimizer, and what moves its learning rate, step by step.

    Args:
        name: "adamw" and "muon": in one cycle; "sgd": as MiR has it (Wang et al., 2022), with
            momentum, a tenth of the learning rate from two fifths of the steps on, and a tenth of
            that from four fifths on.
        weights: What is to move.
        learning_rate: The largest.
        weight_decay: That of the optimizer.
        steps: How many there will be.
    """
    if name == "sgd":
        moving = SGD(weights, learning_rate, momentum=0.9, weight_decay=weight_decay)
        return moving, MultiStepLR(moving, [2 * steps // 5, 4 * steps // 5])
    make = AdamW if name == "adamw" else Muon
    cycled = make(weights, lr=learning_rate, weight_decay=weight_decay)
    return cycled, OneCycleLR(cycled, learning_rate, total_steps=steps)

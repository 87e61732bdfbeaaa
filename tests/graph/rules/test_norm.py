"""Norms: which widths their groups leave to the channels that they read."""

from __future__ import annotations

import pytest
import torch
from models import relative, scramble, spelled_out
from torch import nn

import branchprune as bp


def unshuffled(groups: int) -> nn.Module:
    """A GroupNorm over 6 channels of 4 numbers each."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 1), nn.PixelUnshuffle(2), nn.GroupNorm(groups, 24), nn.ReLU()),
        nn.Conv2d(24, 2, 1),
    )


def positions(groups: int) -> nn.Module:
    """A GroupNorm over 8 positions, whose numbers are 6 channels."""
    layers = nn.Linear(4, 6), nn.GroupNorm(groups, 8), nn.Flatten(0, 1), nn.ReLU(), nn.Linear(6, 2)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "shape", "kept"),
    [
        (unshuffled(4), (2, 3, 4, 4), 3),  # 12 numbers in 4 groups
        (unshuffled(3), (2, 3, 4, 4), 3),  # 12 numbers in 3 groups of a channel each
        (unshuffled(8), (2, 3, 4, 4), 4),  # 12 numbers do not go into 8 groups
        (positions(4), (2, 8, 4), 3),
    ],
)
def test_the_width_is_what_the_groups_of_a_norm_ask_for(
    model: nn.Module, shape: tuple[int, ...], kept: int
) -> None:
    model, x = scramble(model.double().eval()), torch.randn(shape, dtype=torch.float64)
    plan = bp.plan(model, x)
    assert [group.kept for group in plan.groups if group.pruned] == [kept]
    blended = scramble(bp.attach(model, plan), seed=2)
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0
    with torch.no_grad():
        assert relative(spelled_out(blended)(x), bp.collapse(blended)(x)) < 1e-10

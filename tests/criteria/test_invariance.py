"""What leaves the choice of channels as it is: their order, and scales that a reader undoes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import scramble
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.named import CRITERIA, MADE

GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(12, 3, 8, 8, generator=GENERATOR, dtype=torch.double)
Y = torch.randint(3, (12,), generator=GENERATOR)
ORDER = torch.randperm(8, generator=GENERATOR)
FACTORS = torch.rand(8, generator=GENERATOR, dtype=torch.double) * 4 + 0.25
DRAWN = {"random", "obd"}
"""Criteria that draw numbers, parameter by parameter."""
OF_WHAT_IS_READ = ["taylor", "fisher", "apoz", "entropy", "hrank", "reconstruction"]


def network() -> nn.Sequential:
    first = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    end = nn.Conv2d(8, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return scramble(nn.Sequential(*first, *end).double()).eval()


def reordered(model: nn.Sequential) -> nn.Sequential:
    other = network()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    for name in (name for name, each in state.items() if name[0] in "01" and each.dim()):
        state[name] = state[name][ORDER]
    state["3.weight"] = state["3.weight"][:, ORDER]
    other.load_state_dict(state)
    return other


def scaled(model: nn.Sequential) -> nn.Sequential:
    other = network()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    for name in ("1.weight", "1.bias"):
        state[name] *= FACTORS
    state["3.weight"] /= FACTORS[:, None, None]
    other.load_state_dict(state)
    return other


def losses(model: nn.Module) -> list[Tensor]:
    return [F.cross_entropy(model(x), y) for x, y in zip(X.split(1), Y.split(1), strict=True)]


def kept(name: str, model: nn.Sequential) -> set[int]:
    plan: Any = bp.plan(model, X[:1], keep=0.5)
    init: Any = name
    if name == "discrimination":
        init = bp.discrimination(model, plan, [(X, Y)])
    elif name == "fisher":
        init = bp.fisher(model, losses(model))
    elif name == "taylor":
        torch.stack(losses(model)).sum().backward()
    blended = bp.attach(model, plan, init, batches=[X])
    return {*blended.reduce.get_submodule("0").weights[0].argmax(1).tolist()}


@pytest.mark.parametrize("name", sorted({*CRITERIA, *MADE} - DRAWN - {"l0"}))
def test_the_order_of_channels_does_not_matter(name: str) -> None:
    model = network()
    assert {int(ORDER[i]) for i in kept(name, reordered(model))} == kept(name, model)


@pytest.mark.parametrize("name", OF_WHAT_IS_READ)
def test_a_scale_that_the_reader_undoes_does_not_matter(name: str) -> None:
    model = network()
    other = scaled(model)
    assert torch.allclose(model(X), other(X)) and kept("bn_scale", model) != kept("bn_scale", other)
    assert kept(name, other) == kept(name, model)

"""Only a part is planned, and the rest of the model reads a width of it, or a number like one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import relative
from torch import Tensor, nn

import branchprune as bp

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


class Backbone(nn.Module):
    """Halves that are read apart, by a number that follows their width."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 8
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).relu().split([self.half, self.half], 1)
        return self.b(one + other)


class Detector(nn.Module):
    """What cannot be traced as a whole: it returns as many boxes as pass a threshold."""

    def __init__(self, rest: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone, self.head, self.rest = Backbone(), nn.Conv2d(6, 4, 1), rest
        self.own = 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.rest(self, self.backbone(x)))
        return x.flatten()[x.flatten() > 0]


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an attribute that follows": lambda m, x: x / m.backbone.half,
    "a layer": lambda m, x: x * m.backbone.a.out_channels**-0.5,
    "a shape": lambda m, x: x[:, :, : m.backbone.b.weight.shape[1] // 2],
    "a weight": lambda m, x: x + nn.functional.conv2d(x.new_ones(2, 8, 1, 1), m.backbone.b.weight),
    "a branch": lambda m, x: x.relu() if m.backbone.half > 4 else x.tanh(),
}


def attached(model: nn.Module) -> bp.Blended:
    return bp.attach(model, bp.plan(model, X, inside="backbone"))


def made(rest: Callable[[Any, Tensor], Tensor]) -> Detector:
    torch.manual_seed(0)
    return Detector(rest).double().eval()


@pytest.mark.parametrize("rest", READS.values(), ids=READS.keys())
def test_a_rest_that_computes_with_a_width_is_refused(rest: Any) -> None:
    model = made(rest)
    with pytest.raises(bp.PruneError, match=r"Detector at its planned widths .* around backbone"):
        attached(model)
    with pytest.raises(bp.PruneError, match="around backbone"):
        bp.plan(model, X, inside="backbone", check=True)
    assert model.backbone.half == 8 and "forward" not in vars(model.backbone)


def unmoved(model: Any, x: Tensor) -> Tensor:
    assert model.backbone.half > 1
    return x


def own_number(model: Any, x: Tensor) -> Tensor:
    return x / model.own


@pytest.mark.parametrize("rest", [unmoved, own_number])
def test_another_rest_is_exact(rest: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "branchprune"):
        blended = attached(made(rest))
        blended.alpha = 0
        small = bp.collapse(blended)
    assert "nothing outside" not in caplog.text
    assert small.backbone.half == 4 and (small.own == 8 or rest is unmoved)
    with torch.no_grad():
        assert relative(blended(X), small(X)) < 1e-12


def test_a_rest_that_cannot_be_compared_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def wants_a_target(model: Any, x: Tensor) -> Tensor:
        raise ValueError("targets should not be None")

    with caplog.at_level(logging.WARNING, "branchprune"):
        attached(made(wants_a_target))
    assert "with which nothing outside of it may compute: backbone.half = 8 → 4" in caplog.text

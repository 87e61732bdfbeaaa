"""A forward that does not ask for the mode is recorded once; one that may is recorded in both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchprune.graph.tracing import trace as tracing
from branchprune.graph.tracing.trace import trace

X = torch.randn(2, 3, 6, 6)


class Plain(nn.Module):
    """A convolution, a norm and a dropout, which know the mode themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        return self.drop(self.norm(self.conv(x)).relu())


class Asks(Plain):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return F.dropout(y, 0.5, self.training)


class AsksByName(Plain):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y + 1 if getattr(self.norm, "training") else y  # noqa: B009


class HasAFlag(Plain):
    extra = False

    def train(self, mode: bool = True) -> Any:
        self.extra = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y + 1 if self.extra else y


class AsksItsDictionary(Plain):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y + 1 if vars(self)["training"] else y


class HasAProperty(Plain):
    @property
    def training(self) -> bool:
        return self.phase == "training"

    @training.setter
    def training(self, mode: bool) -> None:
        self.phase = "training" if mode else "evaluation"

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y + 1 if self.phase == "training" else y


class SeesItSet(Plain):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "training":
            self.extra = value

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y + 1 if self.extra else y


KINDS = [Asks, AsksByName, HasAFlag, AsksItsDictionary, HasAProperty, SeesItSet]


class Own(nn.Module):
    """An activation that is not looked into, and may ask."""

    def forward(self, x: Tensor) -> Any:
        return x + self.training


def times_recorded(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    modes: list[bool] = []
    original = tracing._record

    def record(*args: Any, **kwargs: Any) -> Any:
        modes.append(args[0].training)
        return original(*args, **kwargs)

    monkeypatch.setattr(tracing, "_record", record)
    trace(model, X, **options)
    return len(set(modes))


def test_one_recording_is_enough_where_nothing_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert times_recorded(Plain(), monkeypatch) == 1
    assert times_recorded(nn.Sequential(Plain(), nn.MaxPool2d(2)), monkeypatch) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_both_modes_are_recorded_where_forward_may_differ(
    kind: type[Plain], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert times_recorded(kind(), monkeypatch) == 2


def test_both_modes_are_recorded_around_what_is_not_looked_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Own()
    assert times_recorded(nn.Sequential(Plain(), own), monkeypatch, opaque=[own]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_training_is_that_of_training(kind: type[Plain]) -> None:
    graphs = trace(kind(), X).graphs
    assert graphs[True] is not graphs[False]


def test_nothing_is_left_on_the_class_of_all_modules() -> None:
    trace(Plain(), X)
    assert "training" not in vars(nn.Module)

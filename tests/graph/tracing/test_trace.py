"""Graphs: where in the model their nodes are from, and which modules differ between the modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.nodes import WHERE
from branchprune.graph.tracing.modes import differing_modules
from branchprune.graph.tracing.trace import trace

X = torch.randn(2, 3, 4, 4)


class Times(nn.Module):
    """A product with one number in training and perhaps another in evaluation."""

    def __init__(self, training: float, evaluation: float) -> None:
        super().__init__()
        self.factors = {True: training, False: evaluation}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors[self.training]


def test_every_call_of_a_module_is_from_its_path() -> None:
    part = Net(lambda m, x: m.inner(m.inner(x)) + m.inner(x), inner=Times(2, 2))
    for inside in ("", "part"):
        model = nn.Sequential()
        model.add_module("part", part)
        graph = trace(model, X, inside).graphs[False]
        places = [node.meta.get(WHERE) for node in graph.nodes if "mul" in node.name]
        assert places == ["part.inner"] * 3


def test_modules_that_differ_in_a_number_alone_are_named() -> None:
    model = nn.Sequential(Times(2, 2), Times(2, 3), nn.Sequential(Times(4, 4), Times(5, 6)))
    graphs = trace(model, X).graphs
    assert differing_modules(graphs) == ("1", "2.1")
    assert differing_modules(trace(model[0], X).graphs) == ()


class Collects(nn.Module):
    """Takes whatever it is given, and uses the first of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        return self.b(self.a((*given, *named.values())[0]).relu())


@pytest.mark.parametrize(("example", "stars"), [((X,), r"\*given"), ({"x": X}, r"\*\*named")])
def test_inputs_without_a_name_are_refused(example: Any, stars: str) -> None:
    with pytest.raises(bp.PruneError, match=rf"Collects\.forward arguments by {stars}, into which"):
        bp.plan(Collects(), example)


def test_a_collection_that_stays_empty_is_no_argument() -> None:
    class Accepts(Collects):
        def forward(self, x: Tensor, *given: Tensor, **named: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, *given, **named)

    model = Accepts()
    blended = bp.attach(model, bp.plan(model, X))
    assert torch.equal(blended(X + 1), model(X + 1))
    with pytest.raises(bp.PruneError, match="given 2 arguments, but the plan's example had 1"):
        blended(X, X)


QUICK = {
    "BatchNorm": (nn.BatchNorm2d(4), nn.BatchNorm2d(5)),
    "BatchNorm of another rank": (nn.BatchNorm2d(4), nn.BatchNorm1d(4)),
    "LayerNorm": (nn.LayerNorm((6, 6)), nn.LayerNorm((5, 6))),
    "Linear": (nn.Linear(6, 3), nn.Linear(5, 3)),
    "Hardswish": (nn.Hardswish(inplace=True), None),
    "GELU": (nn.GELU(), None),
}


@pytest.mark.parametrize("name", QUICK)
def test_shapes_that_are_not_computed(name: str) -> None:
    """They are those that torch computes, and what torch refuses is refused by its words."""
    fits, refused = QUICK[name]
    x = torch.randn(2, 3, 6, 6)
    for training in (False, True):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), fits, nn.Flatten(2), nn.Conv1d(4, 2, 1))
        traced = trace(model.train(training), x)
        for graph in traced.graphs.values():
            shape = traced.recorded.shapes[graph.find_nodes(op="call_module", target="1")[0]]
            assert shape == tuple(fits(model[0](x)).shape)
    if refused is not None:
        with pytest.raises(bp.PruneError, match="fails at 1"):
            bp.plan(nn.Sequential(nn.Conv2d(3, 4, 1), refused), x)

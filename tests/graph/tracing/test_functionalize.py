"""In-place operations: who reads a tensor before it is changed, and who reads it afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp


def read_before(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    early = y * 2
    y.sigmoid_()
    return m.b(y) + m.c(early)


def read_before_a_function(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    early = y * 2
    F.relu(y, inplace=True)
    return m.b(y) + m.c(early)


def not_in_place(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    positive = F.relu(y, inplace=False)
    return m.b(y) + m.c(positive)


def by_its_operator(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.__mul__(y)) + m.c(y)


@pytest.mark.parametrize(
    "run", [read_before, read_before_a_function, not_in_place, by_its_operator]
)
def test_each_reader_gets_the_numbers_of_its_time(run: Callable[[Net, Tensor], Tensor]) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(8, 4, 1)}
    model = scramble(Net(run, **layers).double().eval())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    with torch.no_grad():
        assert torch.equal(blended(x), model(x))
        scramble(blended, seed=2)
        blended.alpha = 0
        assert relative(spelled_out(blended)(x), bp.collapse(blended)(x)) < 1e-10

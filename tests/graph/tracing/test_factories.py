"""Tensors that forward makes from sizes: they follow the input, and random ones stay random."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import Net
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.tracing.factories import DRAWS, FACTORIES

MAKE: dict[str, Callable[[int], Tensor]] = {
    "zeros": lambda n: torch.zeros(n, 2).exp(),
    "ones": lambda n: torch.ones((n, 2)),
    "full": lambda n: torch.full((2, 3), n),
    "empty": lambda n: torch.empty(n, 2).fill_(2.0),
    "eye": lambda n: torch.eye(n),
    "arange": lambda n: torch.arange(n),
    "linspace": lambda n: torch.linspace(0, n, steps=3),
    "logspace": lambda n: torch.logspace(0, 1, n),
    "rand": lambda n: torch.rand(n, 2),
    "randn": lambda n: torch.randn(n),
    "randint": lambda n: torch.randint(1, 100 * n, (n,)),
    "randperm": lambda n: torch.randperm(n) * torch.randperm(n),
    "tril_indices": lambda n: torch.tril_indices(n, 3),
    "triu_indices": lambda n: torch.triu_indices(2, n),
}


def test_each_draw_has_a_row() -> None:
    assert {getattr(torch, name) for name in MAKE} >= DRAWS - {torch.normal}
    assert {getattr(torch, name) for name in MAKE} <= FACTORIES


@pytest.mark.parametrize("name", MAKE)
def test_what_is_made_from_a_size_follows_it(name: str) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        made = MAKE[name](x.shape[2])
        return m.b(m.a(x).relu()) + made.double().sum()

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).double().eval()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 4, 4, dtype=torch.float64)))
    outputs = []
    for net in (model, blended):
        torch.manual_seed(0)
        outputs.append([net(torch.full((1, 3, n, 5), 0.5).double()) for n in (4, 6)])
    assert all(map(torch.equal, *outputs))
    assert not torch.equal(outputs[0][0][..., 0, 0], outputs[0][1][..., 0, 0])


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, torch.rand, torch.empty])
def test_a_whole_shape_may_be_given_number_by_number(make: Callable[..., Tensor]) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        made = make(x.shape[0], x.shape[1], x.shape[2], x.shape[3], dtype=x.dtype)
        return m.b(x + 1 + made.fill_(0.5) * x)

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).double()
    plan = bp.plan(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert [group.kept for group in plan.groups] == [4, 4]
    image = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(bp.attach(model, plan)(image), model(image))

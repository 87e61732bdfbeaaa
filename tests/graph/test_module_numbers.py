"""Numbers that users' modules keep, followed through forward, at any other widths."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import scramble
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.module_numbers import Attribute, ModuleNumber, module_numbers
from branchprune.graph.width_constraints import solve


class Block(nn.Module):
    """A layer `a` of 24 channels, and what a function does with numbers of its own."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], reads: int, **numbers: Any) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Conv2d(3, 24, 1), nn.Conv2d(reads, 6, 1)
        self.first, self.rest = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 6, 1)
        self.twelve = nn.Conv2d(12, 6, 1)
        self.same = nn.Conv2d(8, 8, 1)
        self.end = nn.Conv2d(6, 2, 1)
        for name, value in numbers.items():
            setattr(self, name, value)
        self._leave_out_unused()

    def _leave_out_unused(self) -> None:
        """Remove the layers that are not called: a plan is of those that are."""
        called: set[nn.Module] = set()
        for layer in self.children():
            layer.register_forward_hook(lambda module, *_: called.add(module))
        self(torch.randn(2, 3, 4, 4))
        for name, layer in [*self.named_children()]:
            layer._forward_hooks.clear()
            if layer not in called:
                delattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.run(self, self.a(x)))
        return out


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = (8, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.sizes, 1)  # type: ignore[no-any-return,no-untyped-call]


def two(m: Any, parts: Any) -> Any:
    first, rest = parts
    return m.first(first) + m.rest(rest)


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], dict[str, Any]]] = {
    "split by a list": (
        lambda m, x: two(m, x.split(m.sizes, 1)),
        {"sizes": [8, 16]},
        {"sizes": [2, 4]},
    ),
    "split by two": (
        lambda m, x: two(m, x.split((m.c, m.d), 1)),
        {"c": 8, "d": 16},
        {"c": 2, "d": 4},
    ),
    "split in equal parts": (
        lambda m, x: m.twelve(torch.split(x, m.c, 1)[0]) + m.twelve(x.split(m.c, 1)[1]),
        {"c": 12},
        {"c": 3},
    ),
    "the rest": (
        lambda m, x: two(m, torch.split(x, [m.c, x.shape[1] - m.c], 1)),
        {"c": 8},
        {"c": 2},
    ),
    "a difference": (
        lambda m, x: two(m, x.split([m.c, m.whole - m.c], dim=1)),
        {"c": 8, "whole": 24},
        {"c": 2, "whole": 6},
    ),
    "a share": (
        lambda m, x: m.twelve(torch.split(x, m.whole // m.paths, 1)[0]),
        {"whole": 24, "paths": 2},
        {"whole": 6, "paths": 2},
    ),
    "slices": (lambda m, x: two(m, (x[:, : m.c], x[:, m.c :])), {"c": 8}, {"c": 2}),
    "slices from the end": (lambda m, x: two(m, (x[:, : -m.d], x[:, -m.d :])), {"d": 16}, {"d": 4}),
    "a range": (
        lambda m, x: m.same(x[:, m.c : m.d])[:, : m.c].mean(1, True) + m.first(x[:, m.c : m.d]),
        {"c": 8, "d": 16},
        {"c": 8, "d": 10},
    ),
    "narrow": (
        lambda m, x: m.first(x.narrow(1, 0, m.c)) + m.rest(torch.narrow(x, 1, m.c, m.d)),
        {"c": 8, "d": 16},
        {"c": 2, "d": 4},
    ),
    "half by size": (
        lambda m, x: m.twelve(x[:, : x.shape[1] // 2]) + m.twelve(x[:, x.shape[1] // 2 :]),
        {},
        {},
    ),
    "view": (
        lambda m, x: m.b(x.view(x.size(0), m.c, -1).view(x.size(0), m.c, *x.shape[2:])),
        {"c": 24},
        {"c": 6},
    ),
    "view into parts": (
        lambda m, x: m.b(x.view(len(x), m.heads, m.size, -1).flatten(1, 2).unflatten(2, (4, 4))),
        {"heads": 3, "size": 8},
        {"heads": 3, "size": 2},
    ),
    "expand": (
        lambda m, x: m.b(x.mean((2, 3), True).expand(-1, m.c, 4, 4)),
        {"c": 24},
        {"c": 6},
    ),
    "assertion": (lambda m, x: _asserted(m, x), {"c": 24}, {"c": 6}),
    "residual on a part": (
        lambda m, x: m.b(torch.cat([x[:, : m.c] + m.same(x[:, : m.c]), x[:, m.c :]], 1)),
        {"c": 8},
        {"c": 2},
    ),
    "of a module within": (lambda m, x: two(m, m.cut(x)), {"cut": Cut()}, {}),
}


def _asserted(m: Any, x: Tensor) -> Tensor:
    assert x.shape[1] == m.c, "another width"
    return m.b(x)  # type: ignore[no-any-return]


def block(name: str) -> nn.Module:
    run, numbers, _ = CASES[name]
    return Block(run, 24, **numbers).double().eval()


@pytest.mark.parametrize("name", CASES)
def test_numbers_follow_the_widths(name: str, tmp_path: Path) -> None:
    model, x = block(name), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plan = bp.plan(model, x, keep=0.25, check=True)
    blended = bp.attach(model, plan)
    for training in (False, True):
        assert torch.equal(blended.train(training)(x), model.train(training)(x))
    scramble(blended.eval())
    blended.alpha = 0
    small = bp.collapse(blended)
    assert torch.allclose(small(x), blended(x), rtol=1e-10, atol=1e-12)
    assert {key: vars(small)[key] for key in CASES[name][2]} == CASES[name][2]
    if name != "a range":
        assert small.a.out_channels == 6
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(block(name), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))
    again = bp.plan(small, x, check=True, keep=0.5)
    assert again.after.params < plan.after.params


def test_one_number_for_two_layers_is_one_width() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.same(x[:, : m.c]), m.rest(x[:, m.c :])], 1)
        return m.first(y[:, : m.c]) + y[:, m.c :]  # type: ignore[no-any-return]

    plan = bp.plan(Block(run, 24, c=8), torch.randn(1, 3, 4, 4), keep={"": 0.5, "same": 0.25})
    by_name = {group.name: group for group in plan.groups}
    assert "same" not in by_name and "same" in by_name["a"].layers


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: two(m, x.split([m.c, 16], 1)) * m.c,
        lambda m, x: two(m, x.split([m.c, 2 * m.c], 1)),
        lambda m, x: two(m, x.split([m.c, 16], 1)) * m.c**-0.5,
        lambda m, x: two(m, x.split([m.c, 16], 1)) / float(m.c),
        lambda m, x: two(m, x.split([m.c, 16], 1)) / (m.c / 3),
        lambda m, x: two(m, x.split([m.c, 16], 1)).flatten(2)[..., : m.c].mean(2, True)[..., None],
        lambda m, x: two(m, x.split([m.c, 16], 1)) * torch.full((1, 1, 1, 1), m.c),
    ],
)
def test_a_number_that_is_no_width_alone_stays(run: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = Block(run, 24, c=8).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plan = bp.plan(model, x, check=True)
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small: Any = bp.collapse(blended)
    assert (small.c, small.first.in_channels, small.rest.in_channels) == (8, 8, 16)
    assert small.first.out_channels == 3


def test_a_plain_number_stays_and_what_is_beside_it_does_not() -> None:
    model = Block(lambda m, x: two(m, (x[:, :8], x[:, 8:])), 24)
    groups = bp.plan(model, torch.randn(1, 3, 4, 4)).groups
    reasons = [group.reason for group in groups if group.name.startswith("a")]
    assert reasons == ["`getitem` (in the model) names the size 8", None]


def test_numbers_that_a_bare_module_is_given() -> None:
    model = Block(lambda m, x: two(m, x.split([8, 16], 1)), 24)
    model.run = lambda m, x: two(m, (x[:, : m.kept.c], x[:, m.kept.c :]))
    model.kept = nn.Module()
    model.kept.c = 8
    blended = bp.attach(model, bp.plan(model, torch.randn(1, 3, 4, 4)))
    blended.alpha = 0
    small: Any = bp.collapse(blended)
    assert (small.kept.c, small.first.in_channels, small.rest.in_channels) == (4, 4, 8)


def test_numbers_that_no_width_solves() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return two(m, x.split([m.c // 3, x.shape[1] - m.c // 3], 1))  # type: ignore[no-any-return]

    model = Block(run, 24, c=24)
    plan = bp.plan(model, torch.randn(1, 3, 4, 4), keep=0.7, check=True)
    assert plan.groups[0].kept * 3 == plan.attributes[0].after


def test_counters_are_refused() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        return m.b(x)  # type: ignore[no-any-return]

    with pytest.raises(bp.PruneError, match="changes its attribute calls"):
        bp.plan(Block(run, 24, calls=7), torch.randn(1, 3, 4, 4))


def test_arithmetic() -> None:
    model = Cut()
    vars(model).update(a=12, b=[5, 7, 1], c=True, d="x", e=1)
    with module_numbers(model, "in") as taken:
        n: Any = model.a
        b: Any = model.b
        whole = 2 * n + b[1] - n // 5 + n % 5 + 100 % n + 1 - n**2
        assert (whole, type(whole)) == (-108, ModuleNumber)
        values = {Attribute("in", "a"): 10, Attribute("in", "b", 1): 3}
        assert whole.at(values) == 2 * 10 + 3 - 10 // 5 + 10 % 5 + 100 % 10 + 1 - 10**2
        assert whole.attributes == values.keys()
        assert (-n).at(values) == -10 and isinstance(model.e, int)
        assert not isinstance(model.e, ModuleNumber) and not isinstance(b[2], ModuleNumber)
        assert not taken
        assert (n**0.5, n / 5) == (12**0.5, 2.4)
        assert taken == {Attribute("in", "a")}
        for same in (copy.deepcopy(n), pickle.loads(pickle.dumps(whole))):
            assert isinstance(same, ModuleNumber) and same.attributes <= values.keys()
    found = solve([(whole, whole.at(values)), (n, 10)])
    assert found == values


def test_equal_numbers_of_two_attributes_are_told_apart() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = F.relu(x.view(len(x), x.shape[1] // m.c, m.c, *x.shape[2:]).flatten(1, 2))
        return m.b(y[:, : x.shape[1] // m.d * m.d])  # type: ignore[no-any-return]

    model = Block(run, 24, c=4, d=4)
    with module_numbers(model, ""):
        c: Any = model.c
        d: Any = model.d
        assert c == d and c.key != d.key
    vars(model).update(c=4, d=4)
    bp.attach(model, bp.plan(model, torch.randn(1, 3, 4, 4)))

"""Norms: which widths their groups leave to the channels that they read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, scramble, spelled_out
from torch import Tensor, nn

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


def together(groups: int, first: int, second: int) -> nn.Module:
    """A GroupNorm over the channels of two layers."""
    run = lambda m, x: m.b(m.norm(torch.cat([m.a(x), m.c(x)], 1)).relu())  # noqa: E731
    widths = first + second
    layers = {"a": nn.Conv2d(3, first, 1), "c": nn.Conv2d(3, second, 1)}
    return Net(run, **layers, norm=nn.GroupNorm(groups, widths), b=nn.Conv2d(widths, 2, 1))


@pytest.mark.parametrize(
    ("model", "shape", "kept"),
    [
        (together(3, 8, 4), (2, 3, 4, 4), 2),  # each group holds 4 channels of one layer
        (together(2, 10, 6), (2, 3, 4, 4), [1, 3]),  # one holds 2 of a and 6 of c
        (unshuffled(4), (2, 3, 4, 4), 3),  # 12 numbers in 4 groups
        (unshuffled(3), (2, 3, 4, 4), 3),  # 12 numbers in 3 groups of a channel each
        (unshuffled(8), (2, 3, 4, 4), 4),  # 12 numbers do not go into 8 groups
        (positions(4), (2, 8, 4), 3),
    ],
)
def test_the_width_is_what_the_groups_of_a_norm_ask_for(
    model: nn.Module, shape: tuple[int, ...], kept: int | list[int]
) -> None:
    model, x = scramble(model.double().eval()), torch.randn(shape, dtype=torch.float64)
    plan = bp.plan(model, x)
    found = [group.kept for group in plan.groups if group.pruned]
    assert found == (kept if isinstance(kept, list) else [kept])
    blended = scramble(bp.attach(model, plan), seed=2)
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0
    with torch.no_grad():
        assert relative(spelled_out(blended)(x), bp.collapse(blended)(x)) < 1e-10


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape))


def last(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Norm the channels as the last dimension."""
    return lambda m, x: run(m, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "a shape of the module": last(lambda m, x: F.layer_norm(x, m.shape, m.w, m.v)),
    "a number of the module": last(lambda m, x: torch.layer_norm(x, (m.size,), m.w)),
    "a size of the input": last(lambda m, x: F.layer_norm(x, [x.shape[-1]], 1 + m.w, m.v)),
    "the shape of a weight": last(lambda m, x: F.layer_norm(x, m.w.shape, m.w, m.v)),
    "a shape that is all but the batch": lambda m, x: F.layer_norm(x, x.shape[1:], m.wide),
    "positions alone": lambda m, x: F.layer_norm(x, x.shape[2:]),
    "rms_norm": last(lambda m, x: F.rms_norm(x, m.shape, m.w)),
    "torch.rms_norm without a weight": last(lambda m, x: torch.rms_norm(x, x.shape[-1:])),
    "batch_norm": lambda m, x: F.batch_norm(x, m.mean, m.var, m.w, m.v, m.training),
    "instance_norm": lambda m, x: F.instance_norm(x, m.mean, m.var, m.w, m.v, m.training),
}


def functional_norm(run: Callable[..., Tensor]) -> nn.Module:
    norm = Net(run, w=weights(8), v=weights(8), wide=weights(8, 4, 4))
    norm.shape, norm.size = (8,), 8
    norm.register_buffer("mean", torch.zeros(8))
    norm.register_buffer("var", torch.ones(8))
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_norm_that_forward_calls_as_a_function(name: str) -> None:
    model = scramble(functional_norm(FUNCTIONS[name]).double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plan = bp.plan(model, x)
    assert [group.kept for group in plan.groups] == [4, 2]
    blended = bp.attach(model, plan)
    optimizer = torch.optim.SGD(blended.parameters(), 0.05)
    for alpha in (0.6, 0.2, 0.0):
        blended.alpha = alpha
        optimizer.zero_grad()
        blended(x).square().mean().backward()
        optimizer.step()
    small, other = bp.collapse(blended).eval(), spelled_out(blended).eval()
    other[1].shape, other[1].size = (4,), 4
    y = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert relative(other(y), small(y)) < 1e-10 < relative(other(y), model.eval()(y))


@pytest.mark.parametrize(
    ("run", "reason", "remedy"),
    [
        (
            last(lambda m, x: F.layer_norm(x, (8,), m.w)),
            "`layer_norm` (in 1) names the size 8",
            "write `x.shape[-1]` in its place",
        ),
        (
            last(lambda m, x: F.layer_norm(x, m.mean.shape, m.w)),
            "read by `layer_norm` (in 1): it normalises over the shape of 1.mean",
            "",
        ),
        (
            last(lambda m, x: F.rms_norm(x, m.shape, m.w.softmax(0))),
            "read by `rms_norm` (in 1): the output of `softmax` (in 1), whose width stays",
            "",
        ),
    ],
)
def test_what_stays_at_a_norm(run: Callable[..., Tensor], reason: str, remedy: str) -> None:
    model = functional_norm(run).append(nn.Conv2d(2, 3, 1))
    [group, *_] = bp.plan(model, torch.randn(2, 3, 4, 4)).groups
    assert str(group.reason).startswith(reason) and group.remedy == remedy

"""Regions of autocast inside forward: the blended model computes in them what the user's does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchprune as bp

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BF16 = torch.bfloat16
half = partial(torch.autocast, "cpu", BF16)
full = partial(torch.autocast, "cpu", enabled=False)
CALLERS = {"plain": nullcontext, "mixed": half}
OTHERS = {"float16": partial(torch.autocast, "cpu", torch.float16)}


class Net(nn.Module):
    """Four convolutions and a head; `middle` is what a test puts in between."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8))
        self.norm, self.fc, self.middle = nn.BatchNorm2d(8), nn.Linear(8, 4), middle

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, F.relu(self.norm(self.a(x))))
        return self.fc(F.relu(self.d(x)).mean((2, 3)))


class Inner(nn.Sequential):
    """A submodule in a region of its own."""

    def forward(self, x: Tensor) -> Tensor:
        with half():
            return super().forward(x).float()


def lower(net: Any, x: Tensor) -> Tensor:
    with half():
        x = net.c(F.relu(net.b(x)))
    return x.float() if x.dtype == BF16 else x


def higher(net: Any, x: Tensor) -> Tensor:
    with full():
        return net.c(F.relu(net.b(x.float())))


def softmax(net: Any, x: Tensor) -> Tensor:
    x = net.b(x)
    with full():
        weights = x.float().softmax(-1)
    return net.c(x * weights)


def nested(net: Any, x: Tensor) -> Tensor:
    with half():
        x = net.b(x)
        with full():
            x = F.relu(net.c(x.float()))
        x = net.b(x)
    return x.float()


def in_place(net: Any, x: Tensor) -> Tensor:
    with half():
        y = net.c(net.b(x))
        y += x  # which has all its digits, but y has not
        y = F.relu_(y)
    return y.float()


@torch.autocast("cpu", dtype=BF16)
def decorated(net: Any, x: Tensor) -> Tensor:
    return higher(net, net.b(x)).to(BF16).float()


def training_only(net: Any, x: Tensor) -> Tensor:
    with half(enabled=net.training):
        x = net.c(net.b(x.float()))
    return x.float()


def inherited(net: Any, x: Tensor) -> Tensor:
    """The first region takes its type from the caller, the last from the one around it."""
    with torch.autocast("cpu"):
        x = net.c(x)
    with torch.autocast("cpu", torch.float16, enabled=False), torch.autocast("cpu"):
        x = net.b(x)
    return x.float()


def inner(net: Any, x: Tensor) -> Tensor:
    return net.inner(x)


MIDDLES = (lower, higher, softmax, nested, in_place, decorated, training_only, inherited, inner)


def made(middle: Callable[[Any, Tensor], Tensor]) -> Net:
    torch.manual_seed(1)
    net = Net(middle)
    if middle is inner:
        net.inner = Inner(net.b, nn.ReLU(), net.c)
        del net.b, net.c
    return net


def attached(net: nn.Module, alpha: float = 1.0) -> bp.Blended:
    blended = bp.attach(net, bp.plan(net, X, 0.5))
    blended.alpha = alpha
    return blended


def gradients(net: nn.Module, of: nn.Module) -> list[Tensor]:
    loss = net(X).float().square().sum()
    return list(torch.autograd.grad(loss, list(of.parameters())))


@contextmanager
def types_seen(net: nn.Module) -> Iterator[dict[str, torch.dtype]]:
    """Collect the type of what each convolution returns."""
    found: dict[str, torch.dtype] = {}

    def note(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        found[name] = output.dtype

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("middle", MIDDLES)
def test_both_ends_are_the_users_own_forward(middle: Any, caller: str) -> None:
    net = made(middle)
    blended = attached(net)
    assert len(blended.plan.pruned) >= 3
    with CALLERS[caller]():
        for training in (False, True):
            net.train(training), blended.train(training)
            assert torch.equal(blended(X), net(X))
            for ours, own in zip(
                gradients(blended, blended.model), gradients(net, net), strict=True
            ):
                torch.testing.assert_close(ours, own)
        blended.alpha = 0
        small = bp.collapse(blended.eval()).eval()
        found, expected = blended(X), small(X)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("caller", CALLERS | OTHERS)
@pytest.mark.parametrize("middle", MIDDLES)
def test_every_layer_computes_in_the_users_types(middle: Any, caller: str) -> None:
    net = made(middle).train()
    blended = attached(net, 0.5).train()
    with (CALLERS | OTHERS)[caller](), types_seen(net) as own, types_seen(blended.model) as ours:
        net(X), blended(X).sum().backward()
    assert ours == own
    assert all(p.grad is not None and p.grad.isfinite().all() for p in blended.parameters())


def test_what_lies_in_full_precision_stays_there_under_mixed_precision() -> None:
    """The branch, too: what `reduce` makes of a layer in the region has all its digits."""
    blended = attached(made(higher), 0.5)
    with half(), torch.no_grad():
        found: list[Tensor] = []
        blended.reduce.c.register_forward_hook(lambda *args: found.append(args[2]))
        blended(X)
    assert found[0].dtype == torch.float32
    assert not torch.equal(found[0], found[0].bfloat16().float())


def test_an_error_leaves_no_region_open() -> None:
    blended = attached(made(lower))
    with pytest.raises(RuntimeError):
        blended(torch.randn(2, 4, 8, 8))
    with torch.no_grad():
        blended.model.c.register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            blended(X)
    assert not torch.is_autocast_enabled("cpu")


def test_regions_are_copied_pickled_and_compiled() -> None:
    blended = attached(made(nested), 0.5)
    expected = blended(X)
    for other in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended))):
        assert torch.equal(other(X), expected)
    blended.compile(backend="eager", fullgraph=True)
    assert torch.equal(blended(X), expected)


def test_a_region_that_follows_its_caller_is_told() -> None:
    def follows(net: Any, x: Tensor) -> Tensor:
        with half(enabled=torch.is_autocast_enabled("cpu")):
            return net.c(net.b(x)).float()

    def same(net: Any, x: Tensor) -> Tensor:
        with full(), half(enabled=torch.is_autocast_enabled("cpu")):
            return net.c(net.b(x.float()))

    with pytest.raises(bp.PruneError, match=r"under torch\.autocast.*`enabled`"):
        attached(made(follows))
    assert attached(made(same)).plan.pruned


def test_modes_that_differ_in_regions_alone_are_two() -> None:
    graphs = bp.plan(made(training_only), X).structure.graphs
    assert graphs[True] is not graphs[False]
    graphs = bp.plan(made(lower), X).structure.graphs
    assert graphs[True] is graphs[False]

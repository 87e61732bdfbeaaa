"""Several threads at once: those that plan, and those that run models meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx import _symbolic_trace

import branchprune as bp

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Has a parameter of its own, a factory and a dropout: all that a trace replaces in torch."""

    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.drop, self.b = nn.Dropout(0.5), nn.Conv2d(width, 4, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        shift = torch.zeros(x.shape[0], 1, 1, 1)
        return self.b(self.drop(self.norm(self.a(x)).relu() * self.scale + shift))


def prune(model):
    plan = bp.plan(model, X)
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        assert torch.allclose(small(X), blended(X), 1e-4, 1e-5)
    return str(plan), small.a.out_channels


def test_eight_threads_prune_at_once():
    """Each finds what it would have found alone."""
    models = [Net(width).eval() for width in (8, 12, 16, 20)] * 2
    alone = [prune(model) for model in models]
    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(prune, models)] == alone


def test_a_model_runs_while_another_thread_plans():
    """Also one that the trace does not know, and under autocast, whose regions a trace follows."""
    model, other, ended = Net(8).eval(), Net(16), threading.Event()
    expected = model(X)

    def plan():
        try:
            for _ in range(10):
                bp.plan(other, X)
        finally:
            ended.set()

    with ThreadPoolExecutor(1) as thread, torch.no_grad():
        planned = thread.submit(plan)
        while not ended.is_set():
            assert torch.equal(model(X), expected)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.allclose(model(X).float(), expected, 0.1, 0.1)
        planned.result()


def globals_of_torch():
    return (
        *(dict(vars(kind)) for kind in (nn.Module, torch.autocast, torch.autograd.Function)),
        dict(_symbolic_trace._wrapped_fns_to_patch),
        {name: getattr(torch, name) for name in ("zeros", "rand", "arange")},
    )


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_torch_stays_replaced(fails):
    class Fails(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    before = globals_of_torch()
    if fails:
        with pytest.raises(bp.PruneError, match="cannot be traced"):
            bp.plan(nn.Sequential(nn.Conv2d(3, 4, 1), Fails()), X)
    else:
        prune(Net(8).eval())
    assert globals_of_torch() == before

"""What attaching notices: gradients that differ a little, or in a layer whose own are small."""

from __future__ import annotations

import pytest
import torch
from models import Net, scramble
from torch import Tensor, fx, nn

import branchprune as bp

IMAGE = (2, 3, 8, 8)


def hooked(factor: float, size: float = 1.0) -> nn.Module:
    """A model in which a hook multiplies the gradient of one layer, whose outputs count little."""

    def run(m: Net, x: Tensor) -> Tensor:
        branch = m.b(x)
        if not isinstance(branch, fx.Proxy) and branch.requires_grad:
            branch.register_hook(lambda gradient: factor * gradient)
        out: Tensor = m.c((m.a(x) + size * branch).tanh())
        return out

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 4, 1)}
    return scramble(Net(run, **layers))


def attach(model: nn.Module) -> bp.Blended:
    return bp.attach(model, bp.plan(model, torch.randn(IMAGE)))


def test_a_gradient_that_is_the_same_is_none() -> None:
    assert isinstance(attach(hooked(1.0)), bp.Blended)


@pytest.mark.parametrize("factor", [0.9, 1.1, 2.0, -1.0])
def test_a_gradient_that_differs_is_noticed(factor: float) -> None:
    with pytest.raises(bp.PruneError, match=r"another gradient in b\.(weight|bias)"):
        attach(hooked(factor))


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_small_gradient_that_differs_is_noticed(factor: float) -> None:
    """That of b is about a hundredth of the others'."""
    with pytest.raises(bp.PruneError, match=r"another gradient in b\.(weight|bias)"):
        attach(hooked(factor, size=0.01))


def test_a_gradient_that_is_nan_in_the_model_too_is_no_difference() -> None:
    """A root has an infinite slope at 0, which is multiplied by 0."""

    def run(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        out: Tensor = m.b(y + (y * 0).sqrt())
        return out

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    model(torch.randn(IMAGE)).sum().backward()
    assert model.a.weight.grad.isnan().all()
    assert isinstance(attach(model), bp.Blended)

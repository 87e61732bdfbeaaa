"""Activations that forward checkpoints: the small model does too; of the blended one it is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import branchprune as bp

X = torch.randn(2, 3, 8, 8)


class Checkpointed(nn.Module):
    """Checkpoints its body in training."""

    def __init__(self, sequential: bool = False) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        self.body, self.out = nn.Sequential(*layers), nn.Conv2d(8, 4, 1)
        self.sequential = sequential

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x = self.body(x)
        elif self.sequential:
            x = checkpoint_sequential(self.body, 2, x, use_reentrant=False)
        else:
            x = checkpoint(self.body, x, use_reentrant=False)
        out: Tensor = self.out(x)
        return out


def runs(model: nn.Module, layer: nn.Module) -> int:
    """Return how often a training step runs a layer: twice if it is checkpointed."""
    count = []
    with_hook = layer.register_forward_hook(lambda *_: count.append(1))
    model.train()(X).square().mean().backward()
    with_hook.remove()
    return len(count)


@pytest.mark.parametrize("sequential", [False, True])
def test_what_is_not_checkpointed_is_told_once(sequential: bool) -> None:
    model = Checkpointed(sequential)
    plan = bp.plan(model, X)
    with pytest.warns(UserWarning, match=r"forward runs body\.0, body\.1.* under torch\.utils\.ch"):
        blended = bp.attach(model, plan)
    assert (runs(model, model.body[0]), runs(blended, blended.model.body[0])) == (2, 1)
    blended.alpha = 0.0
    blended.zero_grad()
    small = bp.collapse(blended)
    assert runs(small, small.body[0]) == 2

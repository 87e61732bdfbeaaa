"""What forward keeps for later calls and could compute anew: of weights, or of sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import relative
from torch import Tensor, nn

import branchprune as bp

X = torch.randn(2, 3, 4, 4, dtype=torch.float64)


class Bias(nn.Module):
    """Attention biases as in LeViT: evaluation takes them from a table once."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 9))
        self.register_buffer("index", torch.randint(0, 9, (16,)), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Bias:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.table[:, self.index].view(1, 1, 4, 4)
        if "bias" not in self.cache:
            self.cache["bias"] = self.table[:, self.index]
        return x + self.cache["bias"].view(1, 1, 4, 4)


class Distances(nn.Module):
    """A buffer that follows the size of the input, as in ConViT."""

    def __init__(self, of_input: bool = False) -> None:
        super().__init__()
        self.register_buffer("ramp", torch.zeros(1), persistent=False)
        self.of_input = of_input

    def forward(self, x: Tensor) -> Tensor:
        if len(self.ramp) != x.shape[3]:
            self.ramp = x.mean((0, 1, 2)) if self.of_input else torch.arange(x.shape[3]).to(x)
        return x * self.ramp


class Remembers(nn.Module):
    """Puts what it computes into a list, as heads of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        self.seen.append(x * 2)
        return self.seen[0]


def kept_by(module: nn.Module) -> dict[str, str]:
    return {n: str(v) for n, v in vars(module).items() if n not in vars(nn.Module())} | {
        name: str(buffer) for name, buffer in module.named_buffers()
    }


def chain(middle: nn.Module) -> Any:
    return nn.Sequential(nn.Conv2d(3, 8, 1), middle, nn.Conv2d(8, 4, 1)).double().eval()


@pytest.mark.parametrize("middle", [Bias, Distances, Remembers])
@pytest.mark.parametrize("called", [False, True])
def test_what_can_be_computed_anew_may_be_kept(middle: type[nn.Module], called: bool) -> None:
    model = chain(middle())
    if called:
        model(X)
    before = kept_by(model[1])
    blended: Any = bp.attach(model, bp.plan(model, X))
    assert kept_by(model[1]) == before
    assert torch.equal(blended(X), model(X))
    with torch.no_grad():
        for parameter in blended.model[1].parameters():
            parameter.add_(1)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[0].out_channels == 4
    assert relative(blended(X), small(X)) < 1e-10


def test_a_buffer_that_follows_the_input_is_refused() -> None:
    with pytest.raises(bp.PruneError, match=r"forward changes 1\.ramp"):
        bp.plan(chain(Distances(of_input=True)), X)


class Anchors(nn.Module):
    """Computes a grid anew where the shape is another one, as detection heads do."""

    shape: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.grid = torch.arange(x.shape[2] * x.shape[3]).to(x).view(x.shape[2:])
            self.shape = x.shape
        return x * self.grid


def test_a_cache_for_a_shape_is_no_limit_of_the_shape() -> None:
    model = chain(Anchors())
    model(X)
    blended: Any = bp.attach(model, bp.plan(model, X[:1]))
    for shape in ((2, 3, 4, 4), (1, 3, 4, 4), (3, 3, 5, 6)):
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(blended(x), model(x))
    assert model[1].shape == (3, 8, 5, 6)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert relative(blended(X), small(X)) < 1e-10

"""A user's own `train`, which changes more than the mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.inputs import training_mode

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class CachesWeight(nn.Module):
    """Keeps what it computes of its weight while it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.cache = nn.Parameter(torch.randn(8, 8, 1, 1)), None

    def train(self, mode: bool = True) -> Any:
        self.cache: Tensor | None = None if mode else 2 * self.weight.detach()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, 2 * self.weight if self.cache is None else self.cache)


class Reparameterised(nn.Module):
    """Two convolutions in training, and one in their place in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.one = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), None

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.one: nn.Module | None = None
        if not mode:
            self.one = nn.Conv2d(8, 8, 1)
            self.one.weight.data = self.a.weight.data + self.b.weight.data
            self.one.bias.data = self.a.bias.data + self.b.bias.data
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) if self.one is None else self.one(x)


class LowRank(nn.Conv2d):
    """Merges a product into its weight in evaluation; the product is 0 before any training."""

    def __init__(self) -> None:
        super().__init__(8, 8, 1)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(8, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Any:
        if mode is self.merged:
            self.weight.data += (1 - 2 * mode) * self.product().data
            self.merged = not mode
        return super().train(mode)

    def product(self) -> Tensor:
        return (self.up @ self.down)[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.merged else self.weight + self.product()
        return F.conv2d(x, weight, self.bias)


class KeepsTable(nn.Module):
    """Makes a table of constants, which follows from no parameter."""

    def train(self, mode: bool = True) -> Any:
        self.table = torch.arange(5.0) + mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


class Flag(nn.Module):
    """Knows the mode by an attribute of its own."""

    def train(self, mode: bool = True) -> Any:
        self.rate = 0.5 if mode else 0.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.rate)


def around(part: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), part(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))


SWAPS = {CachesWeight: "1.cache", Reparameterised: "1.one", LowRank: "1.weight"}


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("kind", SWAPS)
def test_what_train_puts_in_place_is_refused(kind: type[nn.Module], mode: bool) -> None:
    model = around(kind).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(bp.PruneError, match=f"{SWAPS[kind]} in place.*leave 1 out with `opaque`"):
        bp.plan(model, X)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", SWAPS)
def test_what_the_error_says_to_write_helps(kind: type[nn.Module]) -> None:
    """Also after the weights have changed, from which evaluation computes its own."""
    model = around(kind).train()
    blended = bp.attach(model, bp.plan(model, X, opaque=["1"])).train()
    with torch.no_grad():
        for parameter in blended.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.allclose(blended.eval()(X), blended.model.eval()(X), atol=1e-6)
    blended.alpha = 0
    small = bp.collapse(blended).eval()
    assert torch.allclose(blended(X), small(X), atol=1e-5)


@pytest.mark.parametrize("kind", [KeepsTable, Flag])
def test_what_follows_from_no_parameter_is_followed(kind: type[nn.Module]) -> None:
    model = around(kind).train()
    blended = bp.attach(model, bp.plan(model, X))
    for mode in (False, True):
        assert torch.equal(blended.train(mode)(X), model.train(mode)(X))
    blended.alpha = 0
    small = bp.collapse(blended)
    for mode in (False, True):
        assert torch.allclose(blended.train(mode)(X), small.train(mode)(X), atol=1e-6)


@pytest.mark.parametrize("mode", [False, True])
def test_a_models_own_attributes_come_back_with_its_mode(mode: bool) -> None:
    model = around(Flag).train(mode)
    blended = bp.attach(model, bp.plan(model, X))
    blended.alpha = 0
    small = bp.collapse(blended)
    for each in (model, blended.model, small):
        assert each[1].rate == 0.5 * mode and each[1].training is mode
    model[0].train(not mode)
    with training_mode(model, False):
        assert model[1].rate == 0 and not model[0].training
    assert (model[1].rate, model[1].training, model[0].training) == (0.5 * mode, mode, not mode)


class FrozenNorm(nn.Sequential):
    """A norm whose statistics stay in training, and a dropout that draws in evaluation, too."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(8), nn.Dropout(0.5, inplace=True))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self[0].eval(), self[1].train()
        return self


def test_the_branch_is_in_the_modes_of_the_layers_beside_it() -> None:
    model = around(FrozenNorm).train()
    blended = bp.attach(model, bp.plan(model, X)).train()
    twin = blended.twin.get_submodule("1.0")
    assert [module.training for module in (twin, blended.model[1][0], model[1][0])] == [False] * 3
    blended.alpha = 0.5
    blended(X)
    assert int(twin.num_batches_tracked) == 0
    assert blended.eval().plain.get_submodule("1.1").training

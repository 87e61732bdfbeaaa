"""Blocks that fade out: what α = 1, α = 0 and what lies between compute, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import relative, scramble
from torch import nn

import branchprune as bp
from branchprune.models import ResNet
from branchprune.planning.profiling import count_macs

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAMES = ["stages.0.1", "stages.1.1"]


def network() -> ResNet:
    model: ResNet = scramble(ResNet(14, (8, 12, 16))).eval()
    return model


def test_it_is_the_model_at_1_and_the_shallow_one_at_0() -> None:
    model = network()
    fading = bp.Shallowing(model, NAMES, X).eval()
    shallow = bp.without(model, NAMES, X)
    assert fading.alpha == 1 and torch.equal(fading(X), model(X))
    assert count_macs(fading, X) == count_macs(model, X)
    fading.alpha = 0
    assert torch.equal(fading(X), shallow(X)) and count_macs(fading, X) == count_macs(shallow, X)
    assert torch.equal(fading.collapsed()(X), shallow(X))
    assert fading.collapsed().state_dict().keys() == shallow.state_dict().keys()


def test_in_between_block_and_shortcut_are_blended() -> None:
    model = network()
    fading = bp.Shallowing(model, ["stages.2.1"], X).eval()
    fading.alpha = 0.3
    seen: dict[str, torch.Tensor] = {}
    block = model.get_submodule("stages.2.1")
    hook = block.register_forward_hook(
        lambda _, args, output: 0.3 * output + 0.7 * args[0].relu()  # what the shortcut leaves
    )
    seen["expected"] = model(X)
    hook.remove()
    assert relative(seen["expected"], fading(X)) < 1e-6


class InPlace(nn.Module):
    """Adds to its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(self.conv(x))


def test_a_block_that_works_in_place_is_blended_with_what_it_was_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), InPlace()).eval()
    fading = bp.Shallowing(model, ["1"], X)
    fading.alpha = 0.25
    with torch.no_grad():
        given = model[0](X)
        expected = given + 0.25 * model[1].conv(given)  # type: ignore[operator, union-attr]
        assert relative(expected, fading(X)) < 1e-6


def test_a_name_that_is_given_twice_is_left_out_once() -> None:
    model = network()
    fading = bp.Shallowing(model, [NAMES[0], *NAMES], X).eval()
    other = bp.Shallowing(model, NAMES, X).eval()
    fading.alpha = other.alpha = 0.5
    assert torch.equal(fading(X), other(X))
    fading.alpha = 0.0
    assert torch.equal(fading.collapsed()(X), bp.without(model, NAMES, X)(X))


def test_both_learn_while_both_count() -> None:
    fading = bp.Shallowing(network(), NAMES, X).train()
    inside = fading.model.get_submodule("stages.0.1.block")
    for alpha, learns in ((1.0, True), (0.5, True), (0.0, False)):
        fading.alpha = alpha
        fading.zero_grad()
        fading(X).square().sum().backward()
        assert all((p.grad is not None) == learns for p in inside.parameters())
        assert all(
            p.grad is not None for p in fading.model.get_submodule("stages.0.0").parameters()
        )


def test_modes_stay_and_the_model_is_not_changed() -> None:
    model = network()
    model.get_submodule("stages.0.1").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fading = bp.Shallowing(model, NAMES, X)
    assert fading.model.get_submodule("stages.0.1").training
    assert not fading.model.get_submodule("stages.1.1").training
    fading.train()(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_alpha_is_checked() -> None:
    fading = bp.Shallowing(network(), NAMES, X)
    wrong: list[Any] = [-0.1, 1.1, float("nan"), True, "0.5", None]
    for alpha in wrong:
        with pytest.raises(bp.PruneError, match="must be a number between 0 and 1"):
            fading.alpha = alpha
    with pytest.raises(bp.PruneError, match=r"alpha \(=1.0\) must be 0 before blocks are left out"):
        fading.collapsed()

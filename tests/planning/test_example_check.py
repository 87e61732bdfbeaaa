"""Examples that are none: told at the argument, with what to write."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from models import Net
from torch import Tensor, nn

import branchprune as bp


def two_inputs(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu())  # type: ignore[no-any-return]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize(
    ("example", "written"),
    [
        ((1, 3, 9, 9), "torch.randn(1, 3, 9, 9)"),
        ([1, 3, 9, 9], "torch.randn(1, 3, 9, 9)"),
        (torch.Size([1, 3, 9, 9]), "torch.randn(1, 3, 9, 9)"),
        (((1, 3, 9, 9),), "torch.randn(1, 3, 9, 9)"),
        (((1, 3, 9, 9), (1, 2)), "(torch.randn(1, 3, 9, 9), torch.randn(1, 2))"),
    ],
)
def test_a_shape_is_no_example(example: Any, written: str) -> None:
    with pytest.raises(bp.PruneError, match=re.escape(f"is a shape and no tensor: give {written}")):
        bp.plan(network(), example)


class Sized(nn.Module):
    """A model whose arguments are whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, height: int, width: int) -> Tensor:
        return self.net(torch.zeros(1, 3, height, width))  # type: ignore[no-any-return]


def test_whole_numbers_are_given_by_name() -> None:
    with pytest.raises(bp.PruneError, match="by the names of forward's arguments"):
        bp.plan(Sized(), (9, 9))
    assert bp.plan(Sized(), {"height": 9, "width": 9}).pruned == (0,)


@pytest.mark.parametrize(
    "model", [network(), nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))]
)
def test_an_image_without_a_batch(model: nn.Module) -> None:
    told = r"example \(shape \(3, 9, 9\)\) has no batch .* `tensor.unsqueeze\(0\)`.*\(1, 3, 9, 9\)"
    with pytest.raises(bp.PruneError, match=told):
        bp.plan(model, torch.randn(3, 9, 9))
    assert bp.plan(model, torch.randn(1, 3, 9, 9)).pruned


def test_an_image_without_a_batch_for_a_part() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), network())
    with pytest.raises(bp.PruneError, match="has no batch dimension"):
        bp.plan(model, torch.randn(3, 9, 9), inside="1")


def test_another_fault_of_an_example_is_told_as_it_is() -> None:
    with pytest.raises(bp.PruneError, match=r"it fails at 0: .* to have 3 channels"):
        bp.plan(network(), torch.randn(1, 4, 9, 9))


def test_a_model_that_takes_both_fails_for_its_own_reason() -> None:
    model = Net(
        lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x, a=nn.Linear(4, 8), b=nn.Linear(8, 2)
    )
    with pytest.raises(bp.PruneError) as error:
        bp.plan(model, torch.randn(3, 4))
    assert "batch dimension" not in str(error.value)

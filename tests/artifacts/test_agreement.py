"""How well one model stands for another, with the interval of what that is worth."""

from __future__ import annotations

import math

import pytest
import torch
from models import Net
from scipy import stats
from torch import Tensor, nn

from branchprune.artifacts.agreement import agreement


def adds(change: Tensor) -> nn.Module:
    """A model that adds to its input; of several images another number to each."""
    return Net(lambda self, x: x + change[: len(x)])


@pytest.mark.parametrize("same", [0, 3, 17, 20])
def test_classes_are_compared_and_the_interval_is_wilsons(same: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    change = torch.zeros(20, 4)
    change[same:] = 9 * torch.nn.functional.one_hot(x[same:].argmin(1), 4)
    found = agreement(adds(torch.zeros(20, 4)), adds(change), x)
    low, high = stats.binomtest(same, 20).proportion_ci(method="wilson")
    assert found.kind == "top-1" and found.images == 20
    assert (found.value, found.low, found.high) == pytest.approx((same / 20, low, high), abs=1e-6)
    errors = [float(c.norm() / y.norm()) for c, y in zip(change, x, strict=True)]
    assert found.error == pytest.approx(math.fsum(errors) / 20, rel=1e-5)
    assert f"mean relative error of the outputs is {100 * found.error:.3g}%" in str(found)


def test_other_outputs_are_compared_by_their_relative_error() -> None:
    torch.manual_seed(0)
    x, change = torch.randn(9, 2, 3, 3), torch.randn(9, 2, 3, 3)
    found = agreement(adds(torch.zeros(9, 2, 3, 3)), adds(change), x)
    errors = [float(c.norm() / y.norm()) for c, y in zip(change, x, strict=True)]
    mean, error = math.fsum(errors) / 9, stats.sem(errors)
    low, high = stats.norm.interval(0.95, mean, error)
    assert found.kind == "relative error"
    assert (found.value, found.low, found.high) == pytest.approx((mean, low, high), rel=1e-5)
    assert found.error == found.value


def test_a_single_image_has_no_interval() -> None:
    x = torch.ones(1, 1, 2, 2)
    assert math.isnan(agreement(adds(torch.zeros(1, 1, 2, 2)), adds(x), x).low)

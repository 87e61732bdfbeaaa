"""What is minimised: relative errors of features and images, divergences of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div, softmax

from branchprune.few_images.matching import mismatch


def numbers(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(len(shape))
    return torch.randn(shape), torch.randn(shape)


def relative(x: torch.Tensor, u: torch.Tensor) -> float:
    return float(((x - u).double() ** 2).sum() / (u.double() ** 2).sum())


@pytest.mark.parametrize("match", ["head", "outputs"])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 4, 4)])
def test_what_is_matched(match: Any, head: bool, shape: tuple[int, ...]) -> None:
    (x, u), (y, v) = numbers(6, 8), numbers(*shape)
    read = ({"fc": [x] * head}, {"fc": [u] * head})
    found = float(mismatch(match, read, ({"out": y}, {"out": v})))
    logits = len(shape) == 2
    outputs = relative(y, v)
    if match == "outputs" and logits:
        pairs = (softmax(y.double() / 4, 1).log(), softmax(v.double() / 4, 1))
        outputs = 16 * float(kl_div(*pairs, reduction="batchmean"))
    wanted = relative(x, u) * (match == "head" and head)
    wanted += outputs * (match == "outputs" or not logits or not head)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_outputs_that_do_not_follow_from_what_was_read_count_too() -> None:
    (x, u), (y, v) = numbers(6, 8), numbers(6, 5)
    read = ({"early": [x]}, {"early": [u]})
    found = float(mismatch("junctions", read, (y, v), covered=False))
    assert found == pytest.approx(relative(x, u) + relative(y, v), rel=1e-5)


@pytest.mark.parametrize("hints", ["ab", "abc", ""])
def test_guides_have_a_weight_of_their_own(hints: str) -> None:
    pairs = {name: numbers(6, *range(2, n + 2)) for n, name in enumerate("abc", 1)}
    read = tuple({name: [pair[i]] for name, pair in pairs.items()} for i in (0, 1))
    found = float(mismatch("junctions", read, numbers(6, 5), hints=hints, hint_weight=3.0))
    errors = {name: relative(*pair) for name, pair in pairs.items()}
    head = [error for name, error in errors.items() if name not in hints]
    inside = [error for name, error in errors.items() if name in hints]
    wanted = sum(head) / (len(head) or 1) + 3 * sum(inside) / (len(inside) or 1)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_what_is_nothing_is_no_error() -> None:
    zeros = torch.zeros(2, 3)
    for x in (zeros, torch.ones(2, 3)):
        assert float(mismatch("head", ({"fc": [x]}, {"fc": [zeros]}), (zeros, zeros))) == 0

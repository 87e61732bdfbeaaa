"""Criteria by weights: cases computed by hand, and what leaves the scores as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.scores import bn_scale, cosine, geometric_median, l0, l1, l2, linf

BY_WEIGHTS = [l0, l1, l2, linf, bn_scale, cosine, geometric_median]


def group_of(*producers: Tensor, norm: Tensor | None = None) -> GroupWeights:
    width = len(producers[0])
    return GroupWeights("g", width, producers, (torch.ones(width) if norm is None else norm,))


def test_norms_by_hand() -> None:
    first = torch.tensor([[3.0, -4.0, 0.0], [1.0, 0.0, 0.0]])
    group = group_of(first, torch.tensor([[2.0], [-2.0]]))
    assert l0(group).tolist() == [0.75, 0.5]
    assert linf(group).tolist() == [4.0, 2.0]


@pytest.mark.parametrize("criterion", BY_WEIGHTS)
def test_the_order_of_channels_is_that_of_scores(criterion: object) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(9, 6, generator=generator).relu()
    norm, order = torch.randn(9, generator=generator), torch.randperm(9, generator=generator)
    assert callable(criterion)
    found = criterion(group_of(rows, norm=norm))
    moved = criterion(group_of(rows[order], norm=norm[order]))
    if criterion is cosine:  # of the last two, which are as like each other, the first stays
        found, moved = found.clamp_max(7), moved.clamp_max(7)
    assert torch.allclose(moved, found[order])


def by_pairs(rows: Tensor) -> list[int]:
    """Return the step at which each row is dropped, by comparing all pairs again each time."""
    cos = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2).abs()
    left, steps = [*range(len(rows))], [0] * len(rows)
    while left:
        step = len(rows) - len(left)
        pairs = [(float(cos[i, j]), i, j) for i in left for j in left if i < j]
        dropped = left[0]
        if pairs:
            _, *pair = max(pairs)
            likeness = [sum(float(cos[i, j]) for j in left if j != i) for i in pair]
            dropped = pair[likeness[1] >= likeness[0]]
        steps[dropped] = step
        left.remove(dropped)
    return steps


@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_cosine_by_all_pairs(width: int) -> None:
    rows = torch.randn(width, 5, generator=torch.Generator().manual_seed(width)).double()
    assert cosine(group_of(rows[:, :2], rows[:, 2:])).tolist() == by_pairs(rows)


def test_one_stays_of_filters_that_are_the_same_up_to_scale_and_sign() -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows[3], rows[5] = -2 * rows[1], 0.1 * rows[1]
    kept = cosine(group_of(rows)).topk(4).indices.tolist()
    assert sorted(kept) in ([0, 1, 2, 4], [0, 2, 3, 4], [0, 2, 4, 5])
    scaled = rows * torch.tensor([1.0, -3.0, 0.5, 2.0, 10.0, 1.0])[:, None]
    assert torch.equal(cosine(group_of(scaled)), cosine(group_of(rows)))


def test_a_filter_that_is_0_repeats_all_others_and_goes_first() -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows[[1, 3]] = 0
    assert sorted(cosine(group_of(rows)).argsort()[:2].tolist()) == [1, 3]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_have_no_cosines(broken: float) -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows[2, 0] = broken
    assert cosine(group_of(rows)).isnan().any()


@pytest.mark.parametrize("scale", [1e-5, 3e2])
@pytest.mark.parametrize("criterion", [l1, l2, bn_scale])
def test_halves_are_ranked_as_the_numbers_they_are(criterion: object, scale: float) -> None:
    rows = (scale * torch.linspace(0.5, 1.5, 9 * 300).view(9, 300)).half()
    assert callable(criterion)
    found = criterion(group_of(rows, norm=rows[:, 0]))
    assert torch.allclose(
        found.double(), criterion(group_of(rows.double(), norm=rows[:, 0])).double()
    )

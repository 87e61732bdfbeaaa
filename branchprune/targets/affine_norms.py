"""Widths by one threshold on norms that are scaled and shifted group by group: LeGR."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.scores import l2
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit
from branchprune.targets.selection import Ways
from branchprune.targets.thresholds import threshold

TRIED, POPULATION, SAMPLE = 30, 10, 3
"""Ways that are measured, how many of the last are parents, and of how many the best is one."""
CHANGED = 0.1
"""Share of the groups that a child changes, at least one."""


@dataclass(frozen=True)
class Affine:
    """A ranking of all channels: `scale · ‖w‖² + shift`, by the group.

    Attributes:
        scales: Shape (G,).
        shifts: Shape (G,).
    """

    scales: Tensor
    shifts: Tensor

    def child(self, spreads: Tensor, draw: torch.Generator) -> Affine:
        """Return one with other numbers for some groups.

        Args:
            spreads: Standard deviation of the squared norms of each group, shape (G,).
            draw: What it is drawn with.
        """
        count = max(1, round(CHANGED * len(spreads)))
        changed = torch.zeros_like(spreads)
        changed[torch.randperm(len(spreads), generator=draw)[:count]] = 1
        first, second = torch.randn(2, len(spreads), generator=draw)
        factors = (changed * first).exp()
        return Affine(self.scales * factors, self.shifts + changed * spreads * second)


def learned_ranking(
    traced: Traced,
    widths: Sequence[Sequence[int]],
    limits: Sequence[Limit],
    change: Callable[[Tensor], float],
    draw: torch.Generator,
) -> Ways:
    """Return the way that keeps the channels of the highest rank of all, the ranking being learned.

    LeGR (Chin, Ding, Zhang, Marculescu, "Towards efficient model compression via learned global
    ranking", CVPR 2020): one threshold on `scale · ‖w‖² + shift`, whose numbers regularized
    evolution finds. There it begins with norms as they are, and each of 400 rankings is judged by
    the accuracy after 200 steps of training; here it begins with multiples of each group's mean,
    and 30 are judged, by the change of the output without training, as with the other ways.

    Args:
        traced: The model.
        widths: Those that each group may take, rising.
        limits: What the widths are to be within.
        change: Measures the change of the output with some widths.
        draw: What rankings are drawn with.
    """
    squares = [_squares(traced, i) if len(row) > 1 else None for i, row in enumerate(widths)]
    spreads = torch.tensor([0.0 if each is None else float(each.std()) for each in squares])
    parents = deque[tuple[float, Affine]](maxlen=POPULATION)
    best = (math.inf, Affine(torch.ones_like(spreads), torch.zeros_like(spreads)))
    for number in range(TRIED):
        if number == 0:
            ranking = best[1]
        elif number < POPULATION:
            ranking = parents[0][1].child(spreads, draw)
        else:
            order = torch.randperm(POPULATION, generator=draw).tolist()
            _, parent = min((parents[i] for i in order[:SAMPLE]), key=itemgetter(0))
            ranking = parent.child(spreads, draw)
        kept = _way(widths, squares, ranking)(limits)
        assert kept is not None, "a threshold ends in the narrowest widths"
        found = change(kept), ranking
        parents.append(found)
        best = min(best, found, key=itemgetter(0))
    return _way(widths, squares, best[1])


def _squares(traced: Traced, group: int) -> Tensor:
    """Return the squared norms of a group's channels as multiples of their mean, falling."""
    norms = l2(group_weights(traced.model, traced.structure, group, traced.model))
    squares = norms.double().cpu().square().sort(descending=True).values
    return squares / squares.mean().clamp_min(torch.finfo(squares.dtype).tiny)  # it may be dead


def _way(
    widths: Sequence[Sequence[int]], squares: Sequence[Tensor | None], ranking: Affine
) -> Ways:
    """Return the way of a ranking: the threshold is on the highest rank that is lost."""
    lost = []
    for i, (row, each) in enumerate(zip(widths, squares, strict=True)):
        if each is None:
            lost.append([-math.inf])
            continue
        ranks = [*(ranking.scales[i] * each + ranking.shifts[i]).tolist(), -math.inf]
        lost.append([ranks[width] for width in row])
    return threshold(widths, lost)

"""Ways to divide a budget among the groups: ours, and others to compare it with.

Each is a function of a `Problem` and returns how to spend a budget: the widths within limits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit, Solver, hold
from branchprune.targets.affine_norms import learned_ranking
from branchprune.targets.choices import Choices
from branchprune.targets.error_curves import MeasuredErrors
from branchprune.targets.selection import Ways, selected
from branchprune.targets.thresholds import global_l1, isomorphic_l1, threshold

DRAWN = 30
"""Random widths of which the best are taken."""
LEAST = 0.1
"""Of the random shares, before all are multiplied by what the budget allows."""
STEPS = 40
"""Halvings of what random shares are multiplied by."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Where a budget may go.

    Attributes:
        traced: The model.
        choices: The widths that its groups may take.
        errors: How its output changes with them.
        limits: What the widths are to be within.
        seed: Of what is drawn at random.
    """

    traced: Traced
    choices: Choices
    errors: MeasuredErrors
    limits: Sequence[Limit]
    seed: int = 0

    def solver(self, curves: Sequence[Sequence[float]] | None = None) -> Solver:
        """Return what solves it.

        Args:
            curves: The change of the output at each width of each group; None: that which was
                measured.
        """
        return Solver(self.choices.widths, self.curves() if curves is None else curves)

    def curves(self) -> list[list[float]]:
        """Return the measured change of the output at each width that each group may take."""
        return self.errors(self.traced.model, self.traced.structure, self.choices.widths)


Allocation = Callable[[Problem], Ways]


def by_selection(problem: Problem) -> Ways:
    """Return the best of about 30 ways, by the change of the output; see `selected`."""
    one_share = problem.choices.at_one_share
    best, _ = selected(problem.solver(), one_share, problem.limits, problem.errors.change)
    return best.way


def additive(problem: Problem) -> Ways:
    """Return the way of the least predicted change: that of each group alone, added up."""
    return problem.solver().solve


def one_share(problem: Problem) -> Ways:
    """Return the way that gives all groups one share of their channels."""
    return problem.choices.at_one_share


def at_random(problem: Problem) -> Ways:
    """Return a way whose shares are drawn evenly, and multiplied by what the budget allows."""
    draw = torch.Generator().manual_seed(problem.seed)
    return _drawn(problem.choices, draw)


def best_at_random(problem: Problem) -> Ways:
    """Return that of 30 random ways with which the output changes least."""
    draw = torch.Generator().manual_seed(problem.seed)
    problem.curves()  # by which channels are chosen
    ways = [_drawn(problem.choices, draw) for _ in range(DRAWN)]
    found = [problem.errors.change(way(problem.limits)) for way in ways]
    return ways[found.index(min(found))]


def scrambled(problem: Problem) -> Ways:
    """Return the way of the least predicted change where each group has the curve of another."""
    widths, curves = problem.choices.widths, problem.curves()
    free = [i for i, each in enumerate(widths) if len(each) > 1]
    draw = torch.Generator().manual_seed(problem.seed)
    order = torch.randperm(len(free), generator=draw).tolist()
    mixed = [*curves]
    for at, next_ in zip(order, order[1:] + order[:1], strict=True):
        i, other = free[at], free[next_]
        here, there = ([k / widths[each][-1] for k in widths[each]] for each in (i, other))
        mixed[i] = [_between(there, curves[other], share) for share in here]
    return problem.solver(mixed).solve


def by_threshold(problem: Problem) -> Ways:
    """Return the least widths at which no group alone changes the output by more than a number."""
    return threshold(problem.choices.widths, problem.curves())


def by_global_l1(problem: Problem) -> Ways:
    """Return the way that keeps the channels of largest L1 norm of all; see `global_l1`."""
    return global_l1(problem.traced, problem.choices.widths)


def by_isomorphic_l1(problem: Problem) -> Ways:
    """Return the way that keeps those of each kind of groups; see `isomorphic_l1`."""
    return isomorphic_l1(problem.traced, problem.choices.widths)


def by_learned_ranking(problem: Problem) -> Ways:
    """Return the best of 30 ways by norms that are scaled and shifted; see `learned_ranking`."""
    draw = torch.Generator().manual_seed(problem.seed)
    problem.curves()  # by which channels are chosen
    given = problem.traced, problem.choices.widths, problem.limits, problem.errors.change
    return learned_ranking(*given, draw)


ALLOCATIONS: dict[str, Allocation] = {
    "selected": by_selection,
    "additive": additive,
    "one_share": one_share,
    "random": at_random,
    "best_of_random": best_at_random,
    "scrambled": scrambled,
    "threshold": by_threshold,
    "global_l1": by_global_l1,
    "isomorphic_l1": by_isomorphic_l1,
    "learned_ranking": by_learned_ranking,
}


def _between(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Return the value at a place, linear between those of rising places, constant beyond."""
    at = bisect_left(places, place)
    if at in (0, len(places)):
        return values[min(at, len(places) - 1)]
    part = (place - places[at - 1]) / (places[at] - places[at - 1])
    return values[at - 1] + part * (values[at] - values[at - 1])


def _drawn(choices: Choices, draw: torch.Generator) -> Callable[[Sequence[Limit]], Tensor]:
    shares = LEAST + (1 - LEAST) * torch.rand(len(choices.widths), generator=draw).double()
    return partial(_scaled_to, choices, shares)


def _scaled_to(choices: Choices, shares: Tensor, limits: Sequence[Limit]) -> Tensor:
    """Return the widths at the largest multiple of shares that is within limits."""
    low, high, found = 0.0, 1 / float(shares.min()), choices.narrowest
    for _ in range(STEPS):
        middle = (low + high) / 2
        kept = choices.nearest((middle * shares).clamp_max(1).tolist())
        if hold(limits, kept):
            low, found = middle, kept
        else:
            high = middle
    return found

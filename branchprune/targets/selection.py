"""The best of several ways to spend a budget, judged by whole models.

That changes of the output add up over the groups holds roughly. So what each group loses is scaled
at random, the widths that are then best are tried out all at once, and the best of them go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from branchprune.planning.width_solver import Limit, Solver

SPREADS = (0.7, 0.5, 0.35)
"""Standard deviation of the logarithm of the factors, round by round."""
DRAWS, FEWER = 9, 4
"""Of factors in a round; of models with many channels, of which each takes seconds."""
MANY = 4000
"""Channels that may go."""
Ways = Callable[[Sequence[Limit]], Tensor | None]
"""Says how to spend a budget: the widths within limits; None: there are none."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A way to spend a budget, and what it comes to.

    Attributes:
        way: The way.
        kept: The widths that it leads to, float64, shape (G,).
        change: The change of the output with them, all groups narrow at once.
    """

    way: Ways
    kept: Tensor
    change: float


def selected(
    solver: Solver,
    one_share: Ways,
    limits: Sequence[Limit],
    change: Callable[[Tensor], float],
) -> tuple[Judged, Judged]:
    """Return the way with the least change of the output, and that of one share for all.

    Args:
        solver: Finds the widths of least predicted error.
        one_share: The way that gives all groups one share.
        limits: What the widths are to be within.
        change: Measures the change of the output with some widths.
    """

    def judge(way: Ways) -> Judged | None:
        kept = way(limits)
        return None if kept is None else Judged(way, kept, change(kept))

    uniform, best = judge(one_share), judge(solver.solve)
    assert uniform is not None, "the way of one share ends in the narrowest widths"
    wider = judge(_Filled(solver, one_share))
    if best is None:  # what is predicted of the narrowest widths is too much, and may be wrong
        return _least(wider, uniform), uniform
    draw = torch.Generator().manual_seed(0)
    centre = torch.zeros(len(solver.widths), dtype=torch.double)
    channels = float((solver.widths[:, -1] - solver.widths[:, 0]).sum())
    for spread in SPREADS:
        around = centre
        for _ in range(DRAWS if channels < MANY else min(DRAWS, FEWER)):
            moved = around + spread * torch.randn(len(around), generator=draw, dtype=torch.double)
            found = judge(_Scaled(solver.scaled(moved.exp())))
            if found is not None and found.change < best.change:
                best, centre = found, moved
    return _least(best, wider, uniform), uniform


def _least(*found: Judged | None) -> Judged:
    """Return what changes the output least; of several alike the first."""
    return min((each for each in found if each is not None), key=lambda each: each.change)


class _Filled:
    """A way, with what it leaves of the limits filled."""

    def __init__(self, solver: Solver, way: Ways) -> None:
        self.solver, self.way = solver, way

    def __call__(self, limits: Sequence[Limit]) -> Tensor | None:
        kept = self.way(limits)
        return None if kept is None else self.solver.filled(kept, limits)


class _Scaled:
    """The way of a solver, without the last touch, which the next factors would undo."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def __call__(self, limits: Sequence[Limit]) -> Tensor | None:
        return self.solver.solve(limits, thorough=False)

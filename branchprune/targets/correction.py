"""Widths whose latency, measured, is within what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from branchprune.planning.width_solver import Limit, Solver

ROUNDS = 4
"""So often a model is built, timed, and the limit corrected."""
USED = 0.98
"""Of what is asked, with which no more is tried."""
MARGIN = 0.99
"""Of the corrected limit, after a model that took too long."""


@dataclass(frozen=True, eq=False)
class Timed:
    """Widths, and how long a model of them takes.

    Attributes:
        kept: The widths, float64, shape (G,).
        ms: The time, measured.
    """

    kept: Tensor
    ms: float


def corrected(
    solver: Solver,
    limits: Sequence[Limit],
    asked: Limit,
    narrowest: Tensor,
    measured_ms: Callable[[Tensor], float],
) -> Timed:
    """Return widths within limits, whose measured time is within one of them, too.

    A model of the widths that the prediction allows is built and timed, and the limit moved by what
    it was off.

    Args:
        solver: Finds widths within limits.
        limits: All other limits.
        asked: That of the time.
        narrowest: The least widths.
        measured_ms: Builds a model of some widths and times it.

    Returns:
        Of what was tried and is within the limit, that of least error; else the fastest.
    """
    tried: list[Timed] = []
    most = asked.most
    for _ in range(ROUNDS):
        found = solver.solve([*limits, replace(asked, most=most)])
        kept = narrowest if found is None else found
        if any(each.kept.equal(kept) for each in tried):
            break
        tried.append(Timed(kept, measured_ms(kept)))
        share = tried[-1].ms / asked.most
        if USED <= share <= 1:
            break
        # From what the prediction says of these widths, since it may leave a part unused.
        most = asked.cost.total(kept) / share * (MARGIN if share > 1 else 1.0)
    within = [each for each in tried if each.ms <= asked.most]
    if within:
        return min(within, key=lambda each: solver.error(each.kept))
    return min(tried, key=lambda each: each.ms)

"""Widths whose latency, measured, is within what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from branchprune.planning.width_solver import Limit
from branchprune.targets.selection import Ways

ROUNDS = 4
"""So often a model is built, timed, and the limit corrected."""
USED = 0.98
"""Of what is asked, with which no more is tried."""
BELOW = 1 - 1e-6
"""Of the predicted time of the dense model, that a limit stays below."""
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
    way: Ways,
    limits: Sequence[Limit],
    asked: Limit,
    narrowest: Tensor,
    widest: Tensor,
    measured_ms: Callable[[Tensor], float],
) -> Timed:
    """Return widths within limits, whose measured time is within one of them, too.

    A model of the widths that the prediction allows is built and timed, and the limit moved by what
    it was off.

    Args:
        way: Finds widths within limits.
        limits: All other limits.
        asked: That of the time.
        narrowest: The least widths.
        widest: The largest; they are those of the dense model, and not within the limit.
        measured_ms: Builds a model of some widths and times it.

    Returns:
        Of what was tried the slowest that is within the limit, else the fastest.
    """
    tried: list[Timed] = []
    most, below = asked.most, BELOW * asked.cost.total(widest)
    for _ in range(ROUNDS):
        found = way([*limits, replace(asked, most=min(most, below))])
        kept = narrowest if found is None else found
        # Where nothing may shrink, the widest are all there is, and timed to say so.
        if any(each.kept.equal(kept) for each in tried) or (tried and kept.equal(widest)):
            break
        tried.append(Timed(kept, measured_ms(kept)))
        share = tried[-1].ms / asked.most
        if USED <= share <= 1:
            break
        # From what the prediction says of these widths, since it may leave a part unused.
        most = asked.cost.total(kept) / share * (MARGIN if share > 1 else 1.0)
    within = [each for each in tried if each.ms <= asked.most]
    return max(within, key=_ms) if within else min(tried, key=_ms)


def _ms(found: Timed) -> float:
    return found.ms

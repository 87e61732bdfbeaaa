"""What a plan shall reach: shares or numbers, checked and as limits on costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from branchprune.errors import PruneError
from branchprune.planning.cost_model import CostModel
from branchprune.planning.staying import Staying, short
from branchprune.planning.width_solver import Limit

COSTS = ("macs", "params", "latency", "latency_ms")
"""What a target may name."""
LATENCY = ("latency", "latency_ms")
"""What of it is measured in a runtime: the share of the dense model's, and in milliseconds."""


@dataclass(frozen=True, eq=False)
class Goal:
    """One entry of a target.

    Attributes:
        what: Its key.
        asked: Its value, as it was given.
        limit: The cost and the most that it may be.
        before: The cost of the dense model.
    """

    what: str
    asked: float
    limit: Limit
    before: float

    @property
    def is_timed(self) -> bool:
        """Whether it is a latency."""
        return self.what in LATENCY

    def told(self, cost: float) -> str:
        """Return a cost of its kind, for people."""
        return amount_of(self.what, cost)


def amount_of(what: str, cost: float) -> str:
    """Return a cost for people, with its unit.

    Args:
        what: The key of a target that it belongs to.
        cost: The cost; a latency in milliseconds.
    """
    return f"{cost:.3g} ms" if what in LATENCY else short(cost)


def check_target(target: object) -> Mapping[str, float]:
    """Return a target; raise PruneError for what is none."""
    if not isinstance(target, Mapping) or not target:
        raise PruneError(f"target (={target!r}) must say what to reach, such as {{'macs': 0.5}}")
    for what, value in target.items():
        if what not in COSTS:
            known = ", ".join(map(repr, COSTS))
            raise PruneError(f"target names {what!r}, which is none of {known}")
        number = not isinstance(value, bool) and isinstance(value, Real)
        if what == "latency_ms":
            if not number or not 0 < value < math.inf:
                raise PruneError(f"target latency_ms (={value!r}) must be a number of milliseconds")
        elif what == "latency":
            if not number or not 0 < value < 1:
                raise PruneError(
                    f"target latency (={value!r}) must be the share that is kept, in (0, 1); for "
                    "milliseconds ask for latency_ms"
                )
        elif not number or not 0 < value < math.inf or value == 1:
            raise PruneError(
                f"target {what} (={value!r}) must be a share that is kept, below 1, or a number "
                f"above 1"
            )
    if all(what in target for what in LATENCY):
        raise PruneError(f"target (={target!r}) names the latency twice: as a share and in ms")
    return target


def check_floor(floor: object) -> None:
    """Raise PruneError for what is no least share of channels."""
    if isinstance(floor, bool) or not isinstance(floor, Real) or not 0 < float(floor) <= 1:
        raise PruneError(
            f"floor (={floor!r}) must be in (0, 1]: it is the least fraction that stays"
        )


def goals(
    target: Mapping[str, float],
    costs: Mapping[str, CostModel],
    widest: Tensor,
    dense_ms: float = 0.0,
) -> list[Goal]:
    """Return what a target asks of a model.

    Args:
        target: What `check_target` returned.
        costs: The cost of the model by key.
        widest: The widths of the dense model, float64, shape (G,).
        dense_ms: Its latency, measured.

    Raises:
        PruneError: The dense model is within all of it.
    """
    found = []
    for what, asked in target.items():
        before = dense_ms if what in LATENCY else costs[what].total(widest)
        share = asked < 1 and what != "latency_ms"
        most = asked * before if share else float(asked)
        found.append(Goal(what, asked, Limit(costs[what], most), before))
    if all(goal.before <= goal.limit.most for goal in found):
        told = ", ".join(f"{g.what} (={g.asked:g}): it has {g.told(g.before)}" for g in found)
        raise PruneError(f"the model is within the target already: {told}")
    return found


def check_reachable(
    found: Sequence[Goal],
    narrowest: Tensor,
    staying: Sequence[Staying],
    floor: float,
    multiple_of: int,
) -> None:
    """Raise PruneError where no widths come to what is asked, but for what is measured.

    Args:
        found: What is asked.
        narrowest: The least widths, float64, shape (G,).
        staying: What stays whatever widths are chosen.
        floor: The least share of the channels of a group.
        multiple_of: What kept widths are multiples of.
    """
    for goal in found:
        if goal.is_timed or goal.limit.holds(narrowest):
            continue
        least = goal.limit.cost.total(narrowest)
        fixed = sorted(staying, key=lambda each: getattr(each, goal.what), reverse=True)
        size = sum(getattr(each, goal.what) for each in fixed)
        why = f", {size / least:.0%} of it in what stays: {fixed[0]}" if size else ""
        raise PruneError(
            f"target {goal.what} (={goal.asked:g}) cannot be reached: at floor={floor:g}, "
            f"multiple_of={multiple_of} at least {least / goal.before:.3f} stay "
            f"({short(least)}){why}"
        )

"""What a plan shall reach: shares or numbers, checked and as limits on costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from torch import Tensor

from branchprune.errors import PruneError
from branchprune.planning.cost_model import CostModel
from branchprune.planning.costs import Cost
from branchprune.planning.group_widths import check_widths
from branchprune.planning.memory_model import Memory
from branchprune.planning.staying import find_staying, short, short_bytes
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit
from branchprune.targets.choices import Choices

COSTS = ("macs", "params", "memory", "latency", "latency_ms")
"""What a target may name."""
OF_DENSE = ("macs", "params")
"""What a share is of where a part of the dense model is left out: no other cost of it is known."""
LATENCY = ("latency", "latency_ms")
"""What of it is measured in a runtime: the share of the dense model's, and in milliseconds."""
TOLD = 0.01
"""Of the least cost, from which on it is told what stays."""


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
        cost: The cost; a latency in milliseconds, memory in bytes.
    """
    if what in LATENCY:
        return f"{cost:.3g} ms"
    return short_bytes(cost) if what == "memory" else short(cost)


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


def as_amounts(target: Mapping[str, float], dense: Cost) -> dict[str, float]:
    """Return a target with amounts in place of shares, for a model of which a part is left out.

    Args:
        target: What `check_target` returned.
        dense: What the whole model costs.

    Raises:
        PruneError: It names a share of what is not known of the whole model.
    """
    for what, asked in target.items():
        if what not in (*OF_DENSE, "latency_ms") and asked < 1:
            instead = "latency_ms" if what == "latency" else "bytes"
            raise PruneError(
                f"target {what} (={asked}) is a share, and where blocks are left out the "
                f"dense model's {' and '.join(OF_DENSE)} alone are known: give {instead}"
            )
    return {
        what: _most(what, asked, getattr(dense, what)) if what in OF_DENSE else asked
        for what, asked in target.items()
    }


def needing_runtime(target: Mapping[str, float], multiple_of: int | str) -> list[str]:
    """Return what of the arguments of `plan` is measured in a runtime."""
    return [what for what in LATENCY if what in target] + ["multiple_of='auto'"] * (
        multiple_of == "auto"
    )


def check_runtime(needing: Sequence[str], is_there: bool) -> None:
    """Raise PruneError where something needs a runtime and there is none."""
    if needing and not is_there:
        raise PruneError(
            f"{needing[0]} is measured in a runtime: give one, runtime=bp.OnnxRuntime(threads=1) "
            "or bp.PyTorch(threads=1); on the command line --runtime onnxruntime; in "
            "configurations prune.widths.target.runtime"
        )


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
        found.append(Goal(what, asked, Limit(costs[what], _most(what, asked, before)), before))
    check_unmet(target, {goal.what: goal.before for goal in found})
    return found


class Met(PruneError):
    """The model is within a target as it is."""


def check_unmet(target: Mapping[str, float], before: Mapping[str, float]) -> None:
    """Raise `Met` where the dense model is within all of a target.

    Args:
        target: What `check_target` returned.
        before: What the dense model has, by key.
    """
    if all(before[what] <= _most(what, asked, before[what]) for what, asked in target.items()):
        told = ", ".join(
            f"{what} (={asked:g}): it has {amount_of(what, before[what])}"
            for what, asked in target.items()
        )
        raise Met(f"the model is within the target already: {told}")


def _most(what: str, asked: float, before: float) -> float:
    """Return what may be left of a cost."""
    return asked * before if asked < 1 and what != "latency_ms" else float(asked)


def check_reachable(
    traced: Traced, asked: Sequence[Goal], choices: Choices, floor: float, multiple_of: int
) -> None:
    """Raise PruneError where no widths come to what is asked, but for what is measured.

    Args:
        traced: The model.
        asked: What is asked.
        choices: The widths that groups may take.
        floor: The least share of the channels of a group.
        multiple_of: What kept widths are multiples of.
    """
    narrowest = choices.narrowest
    for goal in asked:
        if goal.is_timed or goal.limit.holds(narrowest):
            continue
        least = goal.limit.cost.total(narrowest)
        why = _why(traced, goal, choices, least)
        held = sum(len(each) == 1 and each[0] > 1 for each in choices.widths)
        held -= sum(group.reason is not None for group in traced.structure.groups)
        why += f"; keep, exclude and floor hold {held} groups at one width" if held > 0 else ""
        blocks = [group.blocks for group in traced.structure.groups]
        rows = zip(choices.limits, choices.widths, blocks, strict=True)
        held_by = {limit for limit, each, least_of_all in rows if each[0] > least_of_all}
        ways = [
            argument
            for argument, limit in (("floor", "floor"), ("multiple_of", "multiple"))
            if limit in held_by
        ]
        lower = f", or lower {' or '.join(ways)}" if ways else ""
        raise PruneError(
            f"target {goal.what} (={goal.asked:g}) cannot be reached: at floor={floor:g}, "
            f"multiple_of={multiple_of} at least {least / goal.before:.3f} stay "
            f"({goal.told(least)}){why}: ask for more{lower}"
        )


def check_asked(
    keep: float | Mapping[str, float] | None,
    target: Mapping[str, float] | None,
    multiple_of: int | Literal["auto"],
) -> None:
    """Raise PruneError for a share and a target that say nothing, or two things.

    Args:
        keep: See `plan`.
        target: See `plan`.
        multiple_of: See `plan`.
    """
    if target is not None:
        check_target(target)
        if keep is not None and not isinstance(keep, Mapping):
            raise PruneError(
                f"keep (={keep!r}) and target (={target!r}): give one, or single layers in keep"
            )
        if keep and "" in keep:
            raise PruneError(f"keep (={keep!r}) leaves no width to choose: name layers, without ''")
    step = 1 if multiple_of == "auto" else multiple_of
    if isinstance(step, str):
        raise PruneError(f"multiple_of (={multiple_of!r}) must be a whole number or 'auto'")
    check_widths(1.0 if keep is None else keep, step)


def _why(traced: Traced, goal: Goal, choices: Choices, least: float) -> str:
    """Say what of the least cost stays, or where it is."""
    cost = goal.limit.cost
    if isinstance(cost, Memory):
        return f": {cost.told(choices.narrowest)}"
    staying = find_staying(traced.model, traced.structure, choices.rows)
    size = {each: getattr(each, goal.what) for each in staying}
    most = max(size, key=size.__getitem__, default=None)
    share = size[most] / least if most else 0.0
    return f", {share:.0%} of it in what stays: {most}" if share >= TOLD else ""

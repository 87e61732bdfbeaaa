"""A plan whose widths were chosen for a target: what groups cost and lose, what is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from branchprune.planning.columns import in_columns
from branchprune.planning.costs import Cost
from branchprune.planning.plan import Plan
from branchprune.targets.goal import OF_DENSE, Goal, amount_of

TimedWidths = tuple[Tensor, float | None]
"""Widths of all groups, float64, shape (G,), and the latency that was measured of them, if any."""


@dataclass(frozen=True)
class Reached:
    """What became of one entry of a target.

    Attributes:
        what: Its key.
        most: What it may be at most.
        before: What the dense model has.
        after: What the plan has; of a latency what was measured.
        predicted: What was predicted of it.
        uniform: What the plan of one share for all groups has that is within the target, or that is
            predicted to be as fast; of a latency what was measured.
    """

    what: str
    most: float
    before: float
    after: float
    predicted: float
    uniform: float

    @classmethod
    def of(cls, goal: Goal, chosen: TimedWidths, one_share: TimedWidths) -> Reached:
        """Return what became of a goal.

        Args:
            goal: The goal.
            chosen: The widths that were chosen.
            one_share: Those at one share of all.
        """
        predicted = goal.limit.cost.total(chosen[0])
        after, uniform = (
            goal.limit.cost.total(kept) if ms is None or not goal.is_timed else ms
            for kept, ms in (chosen, one_share)
        )
        return cls(goal.what, goal.limit.most, goal.before, after, predicted, uniform)

    def __str__(self) -> str:
        told = partial(amount_of, self.what)
        predicted = "" if self.predicted == self.after else f"; {told(self.predicted)} predicted"
        return (
            f"{self.what}: at most {told(self.most)} asked, {told(self.after)} reached "
            f"({self.after / self.most:.1%} of it, {self.after / self.before:.1%} of the dense "
            f"model's {told(self.before)}{predicted})"
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a target.

    Attributes:
        reached: Of each entry.
        errors: By group, the predicted change of the output if that group alone were narrow; empty:
            the widths are one share of all.
        limited: By group, what keeps it from a lesser width: "floor", "multiple" (of which it is
            the least above the floor) or "keep"; else "".
        change: The change of the output with all groups narrow at once, fitted but not trained.
        uniform: That at one share of all widths within the target.
        trade_off: For shares of the first cost of the target that might be left: the share, the
            predicted change of the output at the widths with the least, and at one share of all;
            where it was asked for, as the report of a run does.
        ms: By group, the predicted milliseconds that go into its channels, at all of them and at
            those that are kept; empty: no latency was asked for.
    """

    reached: tuple[Reached, ...] = ()
    errors: tuple[float, ...] = ()
    limited: tuple[str, ...] = ()
    change: float = 0.0
    uniform: float = 0.0
    trade_off: tuple[tuple[float, float, float], ...] = ()
    ms: tuple[tuple[float, float], ...] = ()

    def as_numbers(self) -> dict[str, Any]:
        """Return it as plain numbers and strings, ready for JSON."""
        return {
            "reached": [vars(each) for each in self.reached],
            "errors": [*self.errors],
            "limited": [*self.limited],
            "change": self.change,
            "uniform": self.uniform,
            "trade_off": [[*each] for each in self.trade_off],
            "ms": [[*each] for each in self.ms],
        }

    @staticmethod
    def of_numbers(found: Mapping[str, Any]) -> Outcome:
        """Return what `as_numbers` was made of."""
        return Outcome(
            tuple(Reached(**each) for each in found["reached"]),
            tuple(found["errors"]),
            tuple(found["limited"]),
            found["change"],
            found["uniform"],
            tuple((share, chosen, uniform) for share, chosen, uniform in found["trade_off"]),
            tuple((before, after) for before, after in found["ms"]),
        )


def with_outcome_of(target: Plan, found: Plan) -> Plan:
    """Return a plan with what became of a target, if it has the widths that were chosen for one.

    Args:
        target: What was planned.
        found: A plan of the same model.
    """
    same = [each.kept for each in target.groups] == [each.kept for each in found.groups]
    if not same or not isinstance(target, TargetPlan):
        return found
    names = [field.name for field in fields(Outcome)]
    return TargetPlan(**{**vars(found), **{name: getattr(target, name) for name in names}})


def beside_dense(planned: Plan, dense: Cost) -> Plan:
    """Return a plan of a model without some of its blocks, its costs beside the dense model's.

    Args:
        planned: The plan.
        dense: What the model costs with all blocks.
    """
    part = planned.before.macs / dense.macs
    groups = (replace(each, macs_share=part * each.macs_share) for each in planned.groups)
    found = replace(planned, before=dense, groups=tuple(groups))
    if not isinstance(found, TargetPlan):
        return found
    reached = (
        replace(each, before=getattr(dense, each.what)) if each.what in OF_DENSE else each
        for each in found.reached
    )
    return replace(found, reached=tuple(reached))


@dataclass(frozen=True, eq=False)
class TargetPlan(Outcome, Plan):
    """A plan whose widths were chosen for a target."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers and strings, ready for JSON."""
        return super().as_dict() | self.as_numbers()

    def table(self) -> list[str]:
        """Return the groups as lines for people."""
        if not self.errors:
            return super().table()
        total = sum(self.errors) or 1.0
        timed = ("ms",) * bool(self.ms)
        rows = [("group", "layers", "width", "MACs", *timed, "error share", "limited by")]
        for i, (group, error) in enumerate(zip(self.groups, self.errors, strict=True)):
            *cells, why = group.row()
            cells += [f"{before:.3g} → {after:.3g}" for before, after in self.ms[i : i + 1]]
            share = f"{error / total:.1%}" if group.pruned else ""
            rows.append((*cells, share, why or self.limited[i]))
        return in_columns(rows)

    def __str__(self) -> str:
        lines = [*map(str, self.reached)]
        if not self.errors:
            lines.append("widths are one share of all channels: nothing was measured yet")
        else:
            lines.append(
                f"change of the output before training: {self.change:.3g}; at one share of all "
                f"channels {self.uniform:.3g}; of groups alone it adds up to {sum(self.errors):.3g}"
            )
        return "\n".join([super().__str__(), *lines])

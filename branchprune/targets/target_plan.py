"""A plan whose widths were chosen for a target: what groups cost and lose, what is reached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from branchprune.planning.columns import in_columns
from branchprune.planning.plan import Plan
from branchprune.targets.goal import Goal, amount_of


@dataclass(frozen=True)
class Reached:
    """What became of one entry of a target.

    Attributes:
        what: Its key.
        most: What it may be at most.
        before: What the dense model has.
        after: What the plan has; of a latency what was measured.
        predicted: What was predicted of it.
        uniform: What the plan of one share for all groups has that is within the target.
    """

    what: str
    most: float
    before: float
    after: float
    predicted: float
    uniform: float

    @classmethod
    def of(cls, goal: Goal, kept: Tensor, one_share: Tensor, ms: float | None = None) -> Reached:
        """Return what became of a goal.

        Args:
            goal: The goal.
            kept: The widths that were chosen, float64, shape (G,).
            one_share: Those at one share of all.
            ms: What was measured, if that is a goal.
        """
        predicted, uniform = map(goal.limit.cost.total, (kept, one_share))
        after = predicted if ms is None or not goal.is_timed else ms
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
        limited: By group, "floor" where that keeps it from a lesser width, else "".
        change: The change of the output with all groups narrow at once, fitted but not trained.
        uniform: That at one share of all widths within the target.
        trade_off: For shares of the first cost of the target that might be left: the share, the
            predicted change of the output at the widths with the least, and at one share of all.
    """

    reached: tuple[Reached, ...] = ()
    errors: tuple[float, ...] = ()
    limited: tuple[str, ...] = ()
    change: float = 0.0
    uniform: float = 0.0
    trade_off: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class TargetPlan(Outcome, Plan):
    """A plan whose widths were chosen for a target."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers and strings, ready for JSON."""
        added = {
            "reached": [vars(each) for each in self.reached],
            "errors": [*self.errors],
            "limited": [*self.limited],
            "change": self.change,
            "uniform": self.uniform,
            "trade_off": [[*each] for each in self.trade_off],
        }
        return super().as_dict() | added

    def table(self) -> list[str]:
        """Return the groups as lines for people."""
        if not self.errors:
            return super().table()
        total = sum(self.errors) or 1.0
        rows = [("group", "layers", "width", "MACs", "error share", "limited by")]
        for group, error, limit in zip(self.groups, self.errors, self.limited, strict=True):
            name, layers, width, macs, why = group.row()
            share = f"{error / total:.1%}" if group.pruned else ""
            rows.append((name, layers, width, macs, share, why or limit))
        return in_columns(rows)

    def __str__(self) -> str:
        lines = [*map(str, self.reached)]
        if self.errors:
            lines.append(
                f"change of the output before training: {self.change:.3g}; at one share of all "
                f"channels {self.uniform:.3g}; of groups alone it adds up to {sum(self.errors):.3g}"
            )
        return "\n".join([super().__str__(), *lines])

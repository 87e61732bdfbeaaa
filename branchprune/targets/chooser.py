"""Widths of all groups within a target: those with the least error, or one share of all."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example
from branchprune.graph.structure import Structure
from branchprune.planning.cost_model import CostModel, params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.group_widths import PlannedGroup, plan_groups, step_of, too_narrow
from branchprune.planning.paths import makers, paths_of, within
from branchprune.planning.plan import Plan, planned
from branchprune.planning.staying import find_staying, short
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit, Solver
from branchprune.targets.correction import corrected
from branchprune.targets.goal import LATENCY, Goal, check_floor, check_reachable, goals
from branchprune.targets.measured_latency import MeasuredLatency
from branchprune.targets.target_plan import Reached, TargetPlan

Errors = Callable[[nn.Module, Structure, Sequence[Sequence[int]]], Sequence[Sequence[float]]]
"""Says of a model how its output changes at each width that each of its groups may take."""
NOTED = 0.01
"""Share of the multiply-adds that functions must have to be spoken of."""
SHARES = 200
"""Of all channels, that are tried for the plan at one share."""


def planned_for(
    model: nn.Module,
    example: Example,
    chooser: Chooser,
    inside: str = "",
    opaque: Sequence[str] = (),
    check: bool = False,
) -> TargetPlan:
    """Return a plan within a target; see `branchprune.targets.plan.plan`.

    Args:
        model: See there.
        example: See there.
        chooser: Chooses the widths.
        inside: See there.
        opaque: See there.
        check: See there.
    """
    named = {"exclude": chooser.exclude, "keep": [*chooser.fixed]}
    found = planned(model, example, chooser, named, inside, opaque, check)
    own = {each.name: getattr(found, each.name) for each in fields(Plan)}
    own["notes"] += _note(found, chooser.target)
    return TargetPlan(**own, **chooser.told)


def _note(found: Plan, target: Mapping[str, float]) -> tuple[str, ...]:
    """Say what of the multiply-adds is counted as if it stayed, if that is much."""
    work = sum(found.structure.other_macs.values())
    if "macs" not in target or work < NOTED * found.before.macs:
        return ()
    return (
        f"MACs of products that forward computes itself ({short(work)}) count as if they stayed: "
        "there may be fewer than are planned",
    )


class Chooser:
    """Chooses the widths of a model for a target.

    Args:
        target: What to reach; see `plan`.
        keep: Layers and modules that keep a share, whatever the target; None: there are none.
        floor: The least share of a group's channels; see `plan`.
        exclude: Layers whose channels stay; see `plan`.
        multiple_of: Of what the kept widths are multiples; "auto": of what pays in a runtime.
        errors: How the output changes with the widths; None: the widths are one share of all.
        latency: How long the model takes in a runtime; None: it is not asked for.

    Attributes:
        told: What `TargetPlan` has beside `Plan`, once widths were chosen.

    Raises:
        PruneError: `floor` is no share.
    """

    def __init__(
        self,
        target: Mapping[str, float],
        keep: float | Mapping[str, float] | None,
        floor: float,
        exclude: Sequence[str],
        multiple_of: int | Literal["auto"],
        errors: Errors | None = None,
        latency: MeasuredLatency | None = None,
    ) -> None:
        check_floor(floor)
        self.target, self.floor = target, floor
        self.fixed = keep if isinstance(keep, Mapping) else {}
        self.exclude, self.multiple_of = paths_of("exclude", exclude), multiple_of
        self.errors, self.latency = errors, latency
        self.told: dict[str, Any] = {}

    def __call__(self, traced: Traced) -> tuple[tuple[PlannedGroup, ...], tuple[str, ...]]:
        """Return the widths; see `Choose`."""
        structure = traced.structure
        multiple = self._multiple(traced)
        rows = plan_groups(structure, {"": self.floor, **self.fixed}, self.exclude, multiple)
        choices = [self._choices(structure, i, row, multiple) for i, row in enumerate(rows)]
        wide, narrow = (
            torch.tensor(each, dtype=torch.double)
            for each in ([row.width for row in rows], [each[0] for each in choices])
        )
        asked = self._goals(traced, choices, multiple, wide)
        staying = find_staying(traced.model, structure, rows)
        check_reachable(asked, narrow, staying, self.floor, multiple)
        one_share = _at_one_share(choices, [goal.limit for goal in asked])
        found, ms = one_share, None
        if self.errors is not None:
            solver = Solver(choices, self.errors(traced.model, structure, choices))
            found, ms = self._solved(traced, solver, asked, narrow)
            self.told["errors"] = tuple(solver.errors_at(found).tolist())
            self.told["uniform"] = solver.error(one_share)
        kept = [int(width) for width in found]
        self.told["reached"] = tuple(Reached.of(goal, found, one_share, ms) for goal in asked)
        self.told["limited"] = tuple(
            "floor" if len(each) > 1 and width == each[0] else ""
            for width, each in zip(kept, choices, strict=True)
        )
        groups = tuple(
            self._row(structure, i, row, width)
            for i, (row, width) in enumerate(zip(rows, kept, strict=True))
        )
        notes = too_narrow(groups, multiple)
        if self.multiple_of == "auto":
            notes += (f"widths are multiples of {multiple}, as pays in {self._runtime_name()}",)
        return groups, notes + (() if self.latency is None else self.latency.notes)

    def _multiple(self, traced: Traced) -> int:
        if self.multiple_of != "auto":
            return self.multiple_of
        assert self.latency is not None, "it was checked that there is a runtime"
        return self.latency.multiple(traced)

    def _runtime_name(self) -> str:
        return "" if self.latency is None else self.latency.runtime.name

    def _goals(
        self, traced: Traced, choices: Sequence[Sequence[int]], multiple: int, wide: Tensor
    ) -> list[Goal]:
        """Return what the target asks of a model."""
        params, macs = params_and_macs(amounts(traced.model, traced.structure), len(choices))
        costs: dict[str, CostModel] = {"params": params, "macs": macs}
        if self.latency is None or not {*LATENCY} & {*self.target}:
            return goals(self.target, costs, wide)
        costs |= dict.fromkeys(LATENCY, self.latency.cost(traced, choices, multiple))
        return goals(self.target, costs, wide, self.latency.dense_ms)

    def _solved(
        self, traced: Traced, solver: Solver, asked: Sequence[Goal], narrowest: Tensor
    ) -> tuple[Tensor, float | None]:
        """Return the widths of least error within what is asked, and the latency if it is."""
        timed = next((goal for goal in asked if goal.is_timed), None)
        limits = [goal.limit for goal in asked if goal is not timed]
        if timed is None or self.latency is None:
            best = solver.solve(limits)
            assert best is not None, "the narrowest widths are within the limits"
            return best, None
        measured = partial(self.latency.measured_ms, traced)
        found = corrected(solver.solve, limits, timed.limit, narrowest, measured, solver.error)
        if found.ms > timed.limit.most:
            raise PruneError(
                f"target {timed.what} (={timed.asked:g}) cannot be reached: at "
                f"floor={self.floor:g}, multiple_of={self._multiple(traced)} the fastest that was "
                f"tried takes {timed.told(found.ms)} in {self._runtime_name()}, the dense model "
                f"{timed.told(timed.before)}"
            )
        return found.kept, found.ms

    def _choices(
        self, structure: Structure, index: int, row: PlannedGroup, multiple: int
    ) -> list[int]:
        """Return the widths that a group may take, rising."""
        group = structure.groups[index]
        if not row.pruned or self._is_fixed(row):
            return [row.kept]
        if not _is_made(structure, index):
            return [row.width]
        step = step_of(group, multiple)
        least = max(step, math.ceil(self.floor * group.width / step) * step)
        return sorted({*range(least, group.width + 1, step), group.width})

    def _is_fixed(self, row: PlannedGroup) -> bool:
        return any(within(layer, self.fixed) for layer in (row.name, *row.layers))

    def _row(self, structure: Structure, index: int, row: PlannedGroup, width: int) -> PlannedGroup:
        """Return a row of the plan at a width."""
        if row.reason is not None:
            return row
        whole = "keep says so" if self._is_fixed(row) else "the target leaves it whole"
        if not _is_made(structure, index):
            whole = "it is not made in evaluation, where changes of the output are measured"
        return replace(row, kept=width, wanted=width, reason=whole if width == row.width else None)


def _is_made(structure: Structure, index: int) -> bool:
    """Return whether a group's channels are made as the model evaluates."""
    called = {node.target for node in structure.graphs[False].nodes if node.op == "call_module"}
    made = makers(structure)[index]
    return not made or any(name in called or name in structure.parameters for name in made)


def _at_one_share(choices: Sequence[Sequence[int]], limits: Sequence[Limit]) -> Tensor:
    """Return the widths at the largest share of all channels that is within limits."""
    for place in range(SHARES, -1, -1):
        kept = [
            each[bisect_right(each, max(each[0], place / SHARES * each[-1])) - 1]
            for each in choices
        ]
        found = torch.tensor(kept, dtype=torch.double)
        if all(limit.holds(found) for limit in limits):
            break
    return found

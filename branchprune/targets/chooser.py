"""Widths of all groups within a target: those with the least error, or one share of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example
from branchprune.planning.cost_model import CostModel, params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.group_widths import PlannedGroup, too_narrow
from branchprune.planning.memory_model import memory_of
from branchprune.planning.paths import paths_of
from branchprune.planning.plan import Plan, planned
from branchprune.planning.staying import short
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit, Solver
from branchprune.targets.allocations import Allocation, Problem, by_selection
from branchprune.targets.choices import Choices
from branchprune.targets.correction import Timed, corrected
from branchprune.targets.error_curves import MeasuredErrors
from branchprune.targets.goal import (
    LATENCY,
    Goal,
    check_asked,
    check_floor,
    check_reachable,
    check_runtime,
    check_unmet,
    goals,
    needing_runtime,
)
from branchprune.targets.latency_model import LatencyModel
from branchprune.targets.measured_latency import MeasuredLatency
from branchprune.targets.selection import Ways
from branchprune.targets.target_plan import Outcome, Reached, TargetPlan

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of a cost, for which the predicted change is shown."""
NOTED = 0.01
"""Of all multiply-adds, from which on it is said that they may be fewer."""


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
    notes = found.notes + _note(found, chooser.target)
    return TargetPlan(**{**vars(found), **vars(chooser.outcome), "notes": notes})


def _note(found: Plan, target: Mapping[str, float]) -> tuple[str, ...]:
    """Say what of the multiply-adds is counted as if it stayed, if that is much."""
    work = sum(each.macs for each in found.structure.other_work if not each.is_known)
    if "macs" not in target or work < NOTED * found.before.macs:
        return ()
    return (
        f"MACs of functions of which no rule is known ({short(work)}) count as if they stayed: "
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
        allocation: How the budget is divided, where errors are measured.
        seed: Of what an allocation draws at random.

    Attributes:
        outcome: What became of the target, once widths were chosen.

    Raises:
        PruneError: An argument is wrong.
    """

    def __init__(
        self,
        target: Mapping[str, float],
        keep: float | Mapping[str, float] | None,
        floor: float,
        exclude: Sequence[str],
        multiple_of: int | Literal["auto"],
        errors: MeasuredErrors | None = None,
        latency: MeasuredLatency | None = None,
        allocation: Allocation = by_selection,
        seed: int = 0,
    ) -> None:
        check_asked(keep, target, multiple_of)
        check_floor(floor)
        check_runtime(needing_runtime(target, multiple_of), latency is not None)
        self.target, self.floor = target, floor
        self.fixed = keep if isinstance(keep, Mapping) else {}
        self.exclude, self.multiple_of = paths_of("exclude", exclude), multiple_of
        self.errors, self.latency = errors, latency
        self.allocation, self.seed = allocation, seed
        self.outcome = Outcome()
        self._solved: tuple[Solver, Choices, CostModel] | None = None

    def __call__(self, traced: Traced) -> tuple[tuple[PlannedGroup, ...], tuple[str, ...]]:
        """Return the widths; see `Choose`."""
        multiple = self._multiple(traced)
        choices = Choices.of(traced.structure, self.floor, self.fixed, self.exclude, multiple)
        asked = self._goals(traced, choices, multiple)
        check_reachable(traced, asked, choices, self.floor, multiple)
        one_share = choices.at_one_share([goal.limit for goal in asked])
        found = _Found(one_share, one_share)
        if self.errors is not None:
            found = self._chosen(traced, choices, asked, self.errors)
        self.outcome = Outcome(
            tuple(
                Reached.of(goal, (found.kept, found.ms), (found.one_share, found.one_share_ms))
                for goal in asked
            ),
            found.errors,
            choices.limited(found.kept),
            found.change,
            found.uniform,
            ms=_ms(asked, choices.widest, found.kept),
        )
        groups = choices.planned(found.kept)
        return groups, (*too_narrow(groups, multiple), *self._notes(multiple))

    def trade_off(self) -> tuple[tuple[float, float, float], ...]:
        """Return what other shares of the first cost would change, as is predicted; see `Outcome`.

        It is empty before widths were chosen, and where no errors are measured.
        """
        if self._solved is None:
            return ()
        solver, choices, cost = self._solved
        found, whole = [], cost.total(choices.widest)
        for share in SHARES:
            limits = [Limit(cost, share * whole)]
            kept = solver.solve(limits, thorough=False)
            if kept is not None:
                uniform = choices.at_one_share(limits)
                found.append((share, solver.error(kept), solver.error(uniform)))
        return tuple(found)

    def _notes(self, multiple: int) -> tuple[str, ...]:
        if self.latency is None:
            return ()
        pays = f"widths are multiples of {multiple}, as pays in {self.latency.runtime.name}"
        return (*[pays] * (self.multiple_of == "auto"), *self.latency.notes)

    def _multiple(self, traced: Traced) -> int:
        if self.multiple_of != "auto":
            return self.multiple_of
        assert self.latency is not None, "it was checked that there is a runtime"
        return self.latency.multiple(traced)

    def _goals(self, traced: Traced, choices: Choices, multiple: int) -> list[Goal]:
        """Return what the target asks of a model."""
        widest = torch.tensor([row.width for row in choices.rows], dtype=torch.double)
        params, macs = params_and_macs(amounts(traced.model, traced.structure), len(widest))
        costs: dict[str, CostModel] = {"params": params, "macs": macs}
        if "memory" in self.target:
            costs["memory"] = memory_of(traced.model, traced.structure)
        if self.latency is None or not {*LATENCY} & {*self.target}:
            return goals(self.target, costs, widest)
        before = {what: cost.total(widest) for what, cost in costs.items()}
        # Before all layers are timed, which takes longer.
        check_unmet(self.target, before | dict.fromkeys(LATENCY, self.latency.dense_alone(traced)))
        costs |= dict.fromkeys(LATENCY, self.latency.cost(traced, choices, multiple))
        return goals(self.target, costs, widest, self.latency.dense_ms)

    def _chosen(
        self, traced: Traced, choices: Choices, asked: Sequence[Goal], errors: MeasuredErrors
    ) -> _Found:
        """Return the widths of least error within what is asked."""
        limits = [goal.limit for goal in asked]
        problem = Problem(traced, choices, errors, limits, self.seed)
        way = self.allocation(problem)
        timed = next((goal for goal in asked if goal.is_timed), None)
        if timed is None:
            kept, rival = way(limits), choices.at_one_share(limits)
            kept = rival if kept is None else kept
            ms = one_share_ms = None
        else:
            found = self._timed(traced, choices, way, asked, timed)
            rival = self._as_fast(choices, asked, timed, found.kept)
            if self.allocation is by_selection and errors.change(rival) < errors.change(found.kept):
                # What was off in the prediction has cost the better way its room.
                other = self._timed(traced, choices, choices.at_one_share, asked, timed)
                found = min(found, other, key=lambda each: errors.change(each.kept))
            kept, ms = found.kept, found.ms
            one_share_ms = ms if rival.equal(kept) else self._measured_ms(traced, rival)
        solver = problem.solver()
        by_group = tuple(solver.errors_at(kept).tolist())
        self._solved = solver, choices, asked[0].limit.cost
        changes = errors.change(kept), errors.change(rival)
        return _Found(kept, rival, ms, one_share_ms, by_group, *changes)

    def _measured_ms(self, traced: Traced, kept: Tensor) -> float:
        assert self.latency is not None, "it was checked that there is a runtime"
        return self.latency.measured_ms(traced, kept)

    def _as_fast(
        self, choices: Choices, asked: Sequence[Goal], timed: Goal, kept: Tensor
    ) -> Tensor:
        """Return the widths at one share whose predicted latency is within that of some others."""
        limit = replace(timed.limit, most=timed.limit.cost.total(kept))
        return choices.at_one_share([limit, *(goal.limit for goal in asked if goal is not timed)])

    def _timed(
        self, traced: Traced, choices: Choices, way: Ways, asked: Sequence[Goal], timed: Goal
    ) -> Timed:
        """Return widths whose measured latency is within what is asked, and that."""
        limits = [goal.limit for goal in asked if goal is not timed]
        measured = partial(self._measured_ms, traced)
        ends = choices.narrowest, choices.widest
        found = corrected(way, limits, timed.limit, *ends, measured)
        if found.ms > timed.limit.most:
            assert self.latency is not None
            multiple = self._multiple(traced)
            raise PruneError(
                f"target {timed.what} (={timed.asked:g}) cannot be reached: at floor="
                f"{self.floor:g}, multiple_of={multiple} the fastest that was tried takes "
                f"{timed.told(found.ms)} in {self.latency.runtime.name}, the dense model "
                f"{timed.told(timed.before)}"
            )
        return found


def _ms(asked: Sequence[Goal], widest: Tensor, kept: Tensor) -> tuple[tuple[float, float], ...]:
    """Return what groups take of a latency, if one is asked for; see `Outcome`."""
    for goal in asked:
        if isinstance(goal.limit.cost, LatencyModel):
            both = (goal.limit.cost.of_groups(each).tolist() for each in (widest, kept))
            return tuple(zip(*both, strict=True))
    return ()


@dataclass(frozen=True, eq=False)
class _Found:
    """Widths, and what is known of them.

    Attributes:
        kept: The widths, float64, shape (G,).
        one_share: Those at one share of all.
        ms: The latency, measured; None: none is asked for.
        one_share_ms: That at one share of all, measured, too.
        errors: The predicted change of each group alone.
        change: The measured change of all at once.
        uniform: That at one share of all.
    """

    kept: Tensor
    one_share: Tensor
    ms: float | None = None
    one_share_ms: float | None = None
    errors: tuple[float, ...] = ()
    change: float = 0.0
    uniform: float = 0.0

"""A plan from a target: the widths with the least predicted change of the output within it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example
from branchprune.graph.structure import ChannelGroup, Structure
from branchprune.planning import plan as by_share
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.group_widths import PlannedGroup, check_widths, plan_groups, step_of
from branchprune.planning.paths import paths_of, within
from branchprune.planning.plan import Plan
from branchprune.planning.staying import find_staying
from branchprune.planning.width_solver import Limit, Solver
from branchprune.targets.error_curves import Measurement, error_curve
from branchprune.targets.goal import check_reachable, check_target, goals
from branchprune.targets.target_plan import Reached, TargetPlan

DEFAULT = 0.5
"""What is kept where neither a share nor a target is given."""
FLOOR = 0.1
"""The least share of a group's channels."""
SHARES = 200
"""Of all channels, that are tried for the plan at one share."""


@one_at_a_time
def plan(
    model: nn.Module,
    example: Example,
    keep: float | Mapping[str, float] | None = None,
    *,
    target: Mapping[str, float] | None = None,
    batches: Iterable[Example] | None = None,
    floor: float = FLOOR,
    exclude: Sequence[str] = (),
    multiple_of: int = 1,
    inside: str = "",
    opaque: Sequence[str] = (),
    check: bool = False,
) -> Plan:
    """Find the channel groups of a model and decide how wide each will be.

    ```python
    plan = bp.plan(model, torch.randn(1, 3, 32, 32), keep=22 / 64)
    print(plan)
    plan = bp.plan(model, images[:1], target={"macs": 0.5}, batches=[images])
    ```

    Args:
        model: Any network; it is traced and run once, and not changed.
        example: An input, a tuple of arguments or a dictionary of keyword arguments.
        keep: Fraction of the channels to keep, in (0, 1]; or one a layer, by path or by the path
            of a module around it, with "" for all others: `{"": 0.5, "head": 1.0}`. A group takes
            that of a layer named itself, else that of the closest module around its first layer
            that has one, else the default; groups that no key names stay, without a branch. 1.0
            keeps a group whole, with a branch as wide as it is, which `exclude` would spare it.
            Parameters and MACs fall with about the square of the fraction.
            With a target: the layers and modules alone that are to keep a share, whatever the
            target. None: 0.5, or what the target leaves.
        target: What to reach, as the share that is kept, below 1, or as a number: "macs" and
            "params", of the whole model. The widths are those with the least predicted change of
            the output: how much it changes with each group alone is measured at two widths on
            `batches`, the widths between and beyond follow what channels leave unexplained of the
            others, and the changes of all groups add up.
        batches: Inputs for that, each a tensor, or a tuple or dictionary of arguments, as they are
            used, normalised: some hundred images. Labels are not needed. The same go to
            `attach(…, "reconstruction", batches=…)`.
        floor: The least share of a group's channels that a target leaves, in (0, 1].
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round the kept widths to a multiple of this; the plan names groups that are too
            narrow for one, and shrink without.
        inside: Path of a module: only what is inside it is traced and pruned, such as the backbone
            of a detector, which cannot be traced as a whole. Costs are then those of the module.
        opaque: Paths of modules that are not looked into; what they read keeps its width. The path
            of a list of modules, or of one that is not called itself, means each within it.
        check: Try the widths now, as `attach` does: a model of these widths is run beside its
            graph, in both modes. That costs a few forward passes.

    Returns:
        The plan; `print` shows it as a table, of a target what was reached, too. Its multiply-adds
        are those of convolutions and fully connected layers that the trace sees, and of
        convolutions and matrix products in parts that `opaque` or `teach` leaves out.

    Raises:
        PruneError: An argument is wrong, the model cannot be traced or does not accept the
            example or a batch, nothing in it can be pruned, the target is met by the model as it is
            or cannot be reached, or `check` finds that the collapsed model would compute something
            else.
    """
    check_asked(keep, target, multiple_of)
    if target is None:
        if batches is not None or floor != FLOOR:
            raise PruneError("batches and floor belong to a target: give one")
        share = DEFAULT if keep is None else keep
        return by_share.plan(
            model,
            example,
            share,
            exclude=exclude,
            multiple_of=multiple_of,
            inside=inside,
            opaque=opaque,
            check=check,
        )
    if isinstance(floor, bool) or not 0 < floor <= 1:
        raise PruneError(
            f"floor (={floor!r}) must be in (0, 1]: it is the least fraction that stays"
        )
    if isinstance(batches, Tensor):
        raise PruneError("batches must be several inputs of forward, such as [batch]")
    seen, fixed = [*(batches or ())], keep if isinstance(keep, Mapping) else {}
    if not seen:
        raise PruneError(
            "target needs batches: some inputs of forward, on which errors are measured"
        )
    exclude = paths_of("exclude", exclude)
    chooser = _Chooser(target, seen, floor, fixed, exclude, multiple_of)
    named = {"exclude": exclude, "keep": [*fixed]}
    found = by_share.planned(model, example, chooser, named, multiple_of, inside, opaque, check)
    own = {each.name: getattr(found, each.name) for each in fields(Plan)}
    return TargetPlan(**own, **chooser.told)


def check_asked(
    keep: float | Mapping[str, float] | None,
    target: Mapping[str, float] | None,
    multiple_of: int,
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
    check_widths(DEFAULT if keep is None else keep, multiple_of)


class _Chooser:
    """Chooses the widths of a model for a target."""

    def __init__(
        self,
        target: Mapping[str, float],
        batches: Sequence[Example],
        floor: float,
        fixed: Mapping[str, float],
        exclude: Sequence[str],
        multiple_of: int,
    ) -> None:
        self.target, self.batches, self.floor = target, batches, floor
        self.fixed, self.exclude, self.multiple_of = fixed, exclude, multiple_of
        self.told: dict[str, Any] = {}

    def __call__(self, model: nn.Module, structure: Structure) -> tuple[PlannedGroup, ...]:
        """Return the widths; see `Choose`."""
        shares = {"": self.floor, **self.fixed}
        rows = plan_groups(structure, shares, self.exclude, self.multiple_of)
        choices = [
            self._choices(group, row) for group, row in zip(structure.groups, rows, strict=True)
        ]
        params, macs = params_and_macs(amounts(model, structure), len(rows))
        wide, narrow = (
            torch.tensor(each, dtype=torch.double)
            for each in ([row.width for row in rows], [each[0] for each in choices])
        )
        asked = goals(self.target, {"params": params, "macs": macs}, wide)
        staying = find_staying(model, structure, rows)
        check_reachable(asked, narrow, staying, self.floor, self.multiple_of)
        solver = Solver(choices, self._errors(model, structure, choices))
        limits = [goal.limit for goal in asked]
        found = solver.solve(limits)
        assert found is not None, "the narrowest widths are within the limits"
        one_share = _at_one_share(solver, choices, limits)
        kept = [int(width) for width in found]
        self.told = {
            "reached": tuple(
                Reached(
                    goal.what,
                    goal.limit.most,
                    goal.before,
                    goal.limit.cost.total(found),
                    goal.limit.cost.total(one_share),
                )
                for goal in asked
            ),
            "errors": tuple(solver.errors_at(found).tolist()),
            "limited": tuple(
                "floor" if len(each) > 1 and width == each[0] else ""
                for width, each in zip(kept, choices, strict=True)
            ),
            "uniform": solver.error(one_share),
        }
        return tuple(
            _row(row, width, len(each) > 1)
            for row, width, each in zip(rows, kept, choices, strict=True)
        )

    def _choices(self, group: ChannelGroup, row: PlannedGroup) -> list[int]:
        """Return the widths that a group may take, rising."""
        fixed = any(within(layer, self.fixed) for layer in (row.name, *row.layers))
        if not row.pruned or fixed:
            return [row.kept]
        step = step_of(group, self.multiple_of)
        least = max(step, math.ceil(self.floor * group.width / step) * step)
        return sorted({*range(least, group.width + 1, step), group.width})

    def _errors(
        self, model: nn.Module, structure: Structure, choices: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return how much the output changes at each width of each group alone."""
        open_groups = [i for i, each in enumerate(choices) if len(each) > 1]
        measurement = Measurement(model, structure, self.batches, open_groups)
        errors = [[0.0] * len(each) for each in choices]
        for i in open_groups:
            curve = error_curve(measurement, i).errors
            errors[i] = curve[torch.tensor(choices[i])].tolist()
        return errors


def _row(row: PlannedGroup, width: int, is_open: bool) -> PlannedGroup:
    """Return a row of the plan at a width."""
    if row.reason is not None:
        return row
    reason = (
        ("the target leaves it whole" if is_open else "keep says so")
        if width == row.width
        else None
    )
    return replace(row, kept=width, wanted=width, reason=reason)


def _at_one_share(
    solver: Solver, choices: Sequence[Sequence[int]], limits: Sequence[Limit]
) -> Tensor:
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

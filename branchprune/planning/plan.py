"""A plan: what will be pruned in a model and what will not, why, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from branchprune.errors import PruneError
from branchprune.graph.build import analyse
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example, copied, inputs_of, plain
from branchprune.graph.mode_swaps import refuse_mode_swaps
from branchprune.graph.module_numbers import Attribute
from branchprune.graph.plain_model import check_model
from branchprune.graph.structure import Structure
from branchprune.graph.width_attributes import (
    WidthAttribute,
    followed_attributes,
    listed,
    width_attributes,
)
from branchprune.graph.width_constraints import values_at
from branchprune.planning.columns import in_columns
from branchprune.planning.costs import Cost, costs, costs_of_unseen
from branchprune.planning.example_check import refuse_shape, refuse_single
from branchprune.planning.group_widths import (
    PlannedGroup,
    check_multiples,
    check_widths,
    plan_groups,
    too_narrow,
)
from branchprune.planning.paths import check_named, check_reached, paths_of, within
from branchprune.planning.staying import Staying, find_staying, staying_lines
from branchprune.planning.traced import Traced
from branchprune.planning.trial import try_widths

Choose = Callable[[Traced], tuple[tuple[PlannedGroup, ...], tuple[str, ...]]]
"""Decides how wide each group of a model will be; returns that, and what is to be said of it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be pruned and what will not, and why; made by `plan`, printed as a table.

    Attributes:
        groups: The channel groups.
        before: What the whole model costs.
        after: What it will cost.
        example: An example input of the part that was traced.
        whole: An example input of the whole model.
        structure: What was found in the model.
        unseen: What the parts cost that are not looked into, by path; `before` and `after` include
            it.
        attributes: Numbers that the user's modules keep and that equal a width which changes. They
            follow it where the collapsed model's forward agrees, but for those whose `after` is
            None.
        notes: What was asked for and could not be done everywhere.
        staying: What no choice of widths could reach, by reason, the most parameters first.
    """

    groups: tuple[PlannedGroup, ...]
    before: Cost
    after: Cost
    example: Example = field(repr=False)
    whole: Example = field(repr=False)
    structure: Structure = field(repr=False)
    unseen: Mapping[str, Cost] = field(default_factory=dict)
    attributes: tuple[WidthAttribute, ...] = ()
    notes: tuple[str, ...] = ()
    staying: tuple[Staying, ...] = ()

    @property
    def pruned(self) -> tuple[int, ...]:
        """Indices of the groups that get a branch."""
        return tuple(i for i, group in enumerate(self.groups) if group.pruned)

    @property
    def numbers(self) -> dict[Attribute, int]:
        """What attributes of the user's modules, which are widths, hold at the new widths."""
        return values_at(self.structure.numbers, [group.kept for group in self.groups])

    def branches_within(self, name: str) -> list[int]:
        """Return the branches of a group, or of all groups that layers within a module make.

        Raises:
            PruneError: There are none.
        """
        branches = [self.groups[i] for i in self.pruned]
        found = [i for i, group in enumerate(branches) if group.name == name]
        # The name of a group means that group, even if the layer also makes channels of others.
        for branch, group in enumerate(() if found else branches):
            layers = (group.name, *group.layers)
            if any(within(layer, [name]) for layer in layers):
                found.append(branch)
        if not found:
            raise PruneError(f"no pruned group is named, or made within, {name!r}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain numbers and strings, ready for JSON."""
        numbers: dict[str, Any] = {
            "groups": [group.as_dict() for group in self.groups],
            "before": vars(self.before),
            "after": vars(self.after),
            "staying": [vars(each) for each in self.staying],
            "attributes": [str(each) for each in self.attributes],
            "notes": [*self.notes],
        }
        unseen = {name: vars(cost) for name, cost in self.unseen.items()}
        return numbers | ({"unseen": unseen} if unseen else {})

    def table(self) -> list[str]:
        """Return the groups as lines for people."""
        rows = [("group", "layers", "width", "MACs", "stays because")]
        return in_columns([*rows, *(group.row() for group in self.groups)])

    def __str__(self) -> str:
        lines = self.table()
        for what in ("channels", "params", "macs"):
            old, new = getattr(self.before, what), getattr(self.after, what)
            change = f" ({new / old - 1:+.1%})" if old else ""
            lines.append(f"{what}: {old:,} → {new:,}{change}")
        for name, cost in self.unseen.items():
            size = f"channels {cost.channels:,}, params {cost.params:,}, macs {cost.macs:,}"
            lines.append(f"of these not looked into: {name}: {size}")
        follow = listed([each for each in self.attributes if each.after is not None])
        lines += [f"attributes that follow: {follow}"] if follow else []
        stale = listed([each for each in self.attributes if each.after is None])
        lines += [f"attributes that name a width and stay: {stale}"] if stale else []
        return "\n".join([*lines, *self.notes, *staying_lines(self.staying, self.before)])


def plan(
    model: nn.Module,
    example: Example,
    keep: float | Mapping[str, float] = 0.5,
    *,
    exclude: Sequence[str] = (),
    multiple_of: int = 1,
    inside: str = "",
    opaque: Sequence[str] = (),
    check: bool = False,
) -> Plan:
    """Decide how wide each channel group will be by a share; see `branchprune.targets.plan.plan`.

    Args:
        model: See there, as for all others.
        example: An example input.
        keep: Fraction of the channels to keep.
        exclude: Layers whose channels stay.
        multiple_of: Of what the kept widths are multiples.
        inside: Path of the module that is planned.
        opaque: Modules that are not looked into.
        check: Whether the widths are tried now.

    Raises:
        PruneError: See there.
    """
    check_widths(keep, multiple_of)
    exclude = paths_of("exclude", exclude)

    def choose(traced: Traced) -> tuple[tuple[PlannedGroup, ...], tuple[str, ...]]:
        groups = plan_groups(traced.structure, keep, exclude, multiple_of)
        check_multiples(groups, multiple_of)
        return groups, too_narrow(groups, multiple_of)

    by_layer = list(keep) if isinstance(keep, Mapping) else []
    named = {"exclude": exclude, "keep": by_layer}
    return planned(model, example, choose, named, inside, opaque, check)


@one_at_a_time
def planned(
    model: nn.Module,
    example: Example,
    choose: Choose,
    named: Mapping[str, Sequence[str]],
    inside: str,
    opaque: Sequence[str],
    check: bool,
) -> Plan:
    """Return a plan of widths that are chosen when the structure of the model is known.

    Args:
        model: See `plan`.
        example: See `plan`.
        choose: Decides for each group how wide it will be, of a copy of the model.
        named: Paths of layers and modules that the arguments name, by argument.
        inside: See `plan`.
        opaque: See `plan`.
        check: See `plan`.

    Raises:
        PruneError: See `plan`.
    """
    opaque = paths_of("opaque", opaque)
    check_model(model)
    refuse_shape(example)
    example = plain(example)
    named = {**named, "opaque": opaque, "inside": [inside]}
    check_named(model, named)
    refuse_mode_swaps(model, inside, opaque)
    model = copied(model, sharing=True)
    given = example
    try:
        example = _inputs_inside(model, inside, given)
        structure = analyse(model, example, inside, opaque)
    except PruneError:
        refuse_single(model, given)
        raise
    check_reached(structure, named)
    groups, notes = choose(Traced(model, structure, example))
    kept = [group.kept for group in groups]
    before, after = costs(model, structure, kept)
    of_widths = (model, structure, kept)
    if check:
        attributes = try_widths(*of_widths, example, given)
    else:
        attributes = (*followed_attributes(*of_widths), *width_attributes(*of_widths))
    unseen = costs_of_unseen(model, structure)
    staying = find_staying(model, structure, groups)
    found = (structure, unseen, attributes, notes, staying)
    return Plan(groups, before, after, example, given, *found)


def _inputs_inside(model: nn.Module, inside: str, example: Example) -> Example:
    """Return what a module gets as the model runs on an example."""
    if not inside:
        return example
    try:
        return inputs_of(model.get_submodule(inside), model, example)
    except PruneError as error:
        raise PruneError(f"inside (={inside!r}): {error}") from error

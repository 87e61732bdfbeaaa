"""How much of which layers stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from branchprune.planning.plan import Plan
from branchprune.targets.chooser import Chooser, planned_for
from branchprune.targets.plan import DEFAULT, FLOOR, plan


@dataclass
class WidthsConfig:
    """Say how many channels stay, and where.

    Args:
        keep: Fraction of the channels to keep; or a mapping of one a layer or module, in which ""
            is that of all others; null: 0.5, or what the target leaves.
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round kept widths to a multiple of this.
        inside: Path of a module: only what is inside it is traced and pruned.
        opaque: Paths of modules that are not looked into.
        target: What to reach, as the share that is kept or as a number, of "macs", "params" and
            "memory", in bytes, for one example: the widths are chosen on `criterion.calibration`
            batches, or on the few images; null: `keep` says it.
    """

    keep: float | dict[str, float] | None = None
    exclude: list[str] = field(default_factory=list)
    multiple_of: int = 1
    inside: str = ""
    opaque: list[str] = field(default_factory=list)
    target: dict[str, float] | None = None

    def first_plan(self, model: nn.Module, example: Tensor) -> Plan:
        """Return a plan before training: of a target, the largest share of all channels within it.

        Nothing can be measured yet.
        """
        if self.target is None:
            return self.plan(model, example)
        asked = (self.target, self.keep, FLOOR, self.exclude, self.multiple_of)
        return planned_for(model, example, Chooser(*asked), self.inside, self.opaque)

    def plan(
        self, model: nn.Module, example: Tensor, batches: Sequence[Tensor] | None = None
    ) -> Plan:
        """Return the plan that leads to these widths.

        Args:
            model: The model.
            example: Input of one example.
            batches: Inputs on which widths are chosen for a target.
        """
        named = {"target": self.target, "multiple_of": self.multiple_of, **self.where()}
        return plan(model, example, self.keep, batches=batches, **named)

    def plan_shares(self, model: nn.Module, example: Tensor, shares: dict[str, float]) -> Plan:
        """Return the plan that keeps other fractions, by group, of what these widths reach."""
        return plan(model, example, shares, **self.where())

    def settled(self, planned: Plan) -> WidthsConfig:
        """Return what says the widths of a plan without a target.

        Args:
            planned: What `plan` returned.
        """
        if self.target is None:
            return self
        keep = {group.name: group.kept / group.width for group in planned.groups if group.pruned}
        # A layer that makes channels of several groups has the name of the first.
        whole = [each.name for each in planned.groups if not each.pruned and "#" in each.name]
        return replace(self, keep=keep, exclude=[*self.exclude, *whole], target=None)

    def options(self) -> dict[str, Any]:
        """Return what `plan` takes, of widths without a target."""
        keep = DEFAULT if self.keep is None else self.keep
        return {"keep": keep, "multiple_of": self.multiple_of, **self.where()}

    def where(self) -> dict[str, Any]:
        """Return what `plan` takes as to where it looks."""
        return {"exclude": self.exclude, "inside": self.inside, "opaque": self.opaque}

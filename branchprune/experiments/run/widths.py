"""How much of which layers stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from branchprune.experiments.run.target import TargetConfig
from branchprune.planning.plan import Plan
from branchprune.targets.chooser import planned_for
from branchprune.targets.error_curves import RECONSTRUCTION, Init
from branchprune.targets.plan import DEFAULT, plan
from branchprune.targets.target_plan import Outcome, TargetPlan


@dataclass
class WidthsConfig:
    """Say how many channels stay, and where.

    Args:
        keep: Fraction of the channels to keep; or a mapping of one a layer or module, in which ""
            is that of all others; null: 0.5, or what the target leaves.
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round kept widths to a multiple of this; "auto": to what pays in the runtime of
            the target.
        inside: Path of a module: only what is inside it is traced and pruned.
        opaque: Paths of modules that are not looked into.
        target: What to reach: the widths are chosen on `criterion.calibration` batches, or on the
            few images; null: `keep` says it.
    """

    keep: float | dict[str, float] | None = None
    exclude: list[str] = field(default_factory=list)
    multiple_of: int | Literal["auto"] = 1
    inside: str = ""
    opaque: list[str] = field(default_factory=list)
    target: TargetConfig | None = None

    @property
    def named(self) -> list[str]:
        """Paths of what must be there: it has widths of its own, or is not looked into."""
        shares = self.keep if isinstance(self.keep, dict) else {}
        return [each for each in (*self.exclude, *shares, self.inside, *self.opaque) if each]

    def of_dense(self, whole: Plan) -> WidthsConfig:
        """Return these widths for a model without some of its blocks; see `TargetConfig`.

        Args:
            whole: Any plan of the whole model.
        """
        if self.target is None:
            return self
        return replace(self, target=self.target.of_dense(whole.before))

    def plan(
        self,
        model: nn.Module,
        example: Tensor,
        batches: Sequence[Tensor] | None = None,
        criterion: Init = RECONSTRUCTION,
        seed: int = 0,
    ) -> Plan:
        """Return the plan that leads to these widths.

        Args:
            model: The model.
            example: Input of one example.
            batches: Inputs on which widths are chosen for a target; None: they are one share.
            criterion: By which channels are chosen there.
            seed: Of what is drawn for a target.
        """
        if self.target is None:
            return plan(model, example, **self.options())
        chooser = self.target.chooser(
            keep=self.keep,
            exclude=self.exclude,
            multiple_of=self.multiple_of,
            batches=batches,
            criterion=criterion,
            seed=seed,
        )
        found = planned_for(model, example, chooser, self.inside, self.opaque)
        return replace(found, trade_off=chooser.trade_off())

    def planned_again(self, model: nn.Module, example: Tensor, found: Mapping[str, Any]) -> Plan:
        """Return the plan that was made for a target, without measuring anything.

        Args:
            model: The model.
            example: Input of one example.
            found: What `decision` returned.
        """
        settled = replace(self, **found["widths"], target=None)
        outcome = Outcome.of_numbers(found["outcome"])
        return TargetPlan(**{**vars(settled.plan(model, example)), **vars(outcome)})

    def decision(self, planned: Plan) -> dict[str, Any]:
        """Return what a plan for a target has decided, as plain numbers and strings.

        Args:
            planned: What `plan` returned.
        """
        assert isinstance(planned, TargetPlan), "it was made for a target"
        settled = self.settled(planned)
        names = ("keep", "exclude", "multiple_of")
        widths = {name: getattr(settled, name) for name in names}
        return {"widths": widths, "outcome": planned.as_numbers()}

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
        exclude, multiple = [*self.exclude, *whole], self.multiple_of
        multiple = 1 if multiple == "auto" else multiple
        return replace(self, keep=keep, exclude=exclude, multiple_of=multiple, target=None)

    def options(self) -> dict[str, Any]:
        """Return what `plan` takes, of widths without a target."""
        keep = DEFAULT if self.keep is None else self.keep
        return {"keep": keep, "multiple_of": self.multiple_of, **self.where()}

    def where(self) -> dict[str, Any]:
        """Return what `plan` takes as to where it looks."""
        return {"exclude": self.exclude, "inside": self.inside, "opaque": self.opaque}

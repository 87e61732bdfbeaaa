"""How much of which layers stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from branchprune.planning.plan import Plan, plan


@dataclass
class WidthsConfig:
    """Say how many channels stay, and where.

    Args:
        keep: Fraction of the channels to keep; or a mapping of one a layer or module, in which ""
            is that of all others.
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round kept widths to a multiple of this.
        inside: Path of a module: only what is inside it is traced and pruned.
        opaque: Paths of modules that are not looked into.
    """

    keep: float | dict[str, float] = 0.5
    exclude: list[str] = field(default_factory=list)
    multiple_of: int = 1
    inside: str = ""
    opaque: list[str] = field(default_factory=list)

    def plan(self, model: nn.Module, example: Tensor) -> Plan:
        """Return the plan that leads to these widths."""
        return plan(model, example, **self.options())

    def plan_shares(self, model: nn.Module, example: Tensor, shares: dict[str, float]) -> Plan:
        """Return the plan that keeps other fractions, by group, of what these widths reach."""
        return plan(model, example, shares, **self.where())

    def options(self) -> dict[str, Any]:
        """Return what `plan` takes."""
        return {"keep": self.keep, "multiple_of": self.multiple_of, **self.where()}

    def where(self) -> dict[str, Any]:
        """Return what `plan` takes as to where it looks."""
        return {"exclude": self.exclude, "inside": self.inside, "opaque": self.opaque}

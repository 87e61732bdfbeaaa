"""The widths that each group of a model may take, and why some can take no other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from branchprune.graph.structure import Structure
from branchprune.planning.group_widths import PlannedGroup, plan_groups, step_of
from branchprune.planning.paths import makers, within
from branchprune.planning.width_solver import Limit, hold

LEFT_WHOLE = "the target leaves it whole"
SHARES_TRIED = 200
"""Of all channels, for the plan at one share."""


@dataclass(frozen=True, eq=False)
class Choices:
    """The widths that each group may take.

    Attributes:
        rows: The groups at their least widths.
        widths: Those of each, rising; one alone where there is no choice.
        reasons: Of each, why it stays where it is left whole.
        limits: Of each, what keeps it from less than the least of its widths: "floor", "multiple"
            or "keep"; "": nothing that the arguments say, or that can be told.
    """

    rows: tuple[PlannedGroup, ...]
    widths: tuple[tuple[int, ...], ...]
    reasons: tuple[str, ...]
    limits: tuple[str, ...]

    @classmethod
    def of(
        cls,
        structure: Structure,
        floor: float,
        fixed: Mapping[str, float],
        exclude: Sequence[str],
        multiple_of: int,
    ) -> Choices:
        """Return the choices in a model.

        Args:
            structure: Its structure.
            floor: The least share of the channels of a group.
            fixed: Layers and modules that keep a share.
            exclude: Layers and modules whose channels stay.
            multiple_of: Of what the widths are multiples.
        """
        rows = plan_groups(structure, {"": floor, **fixed}, exclude, multiple_of)
        made = _made(structure)
        widths, reasons, limits = [], [], []
        for i, row in enumerate(rows):
            group, reason, limit = structure.groups[i], LEFT_WHOLE, ""
            if not row.pruned:
                found = [row.kept]
            elif any(within(layer, fixed) for layer in (row.name, *row.layers)):
                found, reason, limit = [row.kept], "keep says so", "keep"
            elif not made[i]:
                found = [row.width]
                reason = "it is not made in evaluation, where changes of the output are measured"
            else:
                step = step_of(group, multiple_of)
                least = _least(group.width, floor, step)
                found = sorted({*range(least, group.width + 1, step), group.width})
                unrounded = _least(group.width, floor, group.blocks)
                limit = "floor" if found[0] == unrounded else "multiple"
                if len(found) == 1:
                    reason = f"floor (={floor:g}) allows no other width"
                    reason += f" in multiples of {step}" * (limit == "multiple")
            widths.append(tuple(found))
            reasons.append(row.reason or reason)
            limits.append(limit)
        return cls(rows, tuple(widths), tuple(reasons), tuple(limits))

    @property
    def narrowest(self) -> Tensor:
        """The least widths, float64, shape (G,)."""
        return torch.tensor([each[0] for each in self.widths], dtype=torch.double)

    @property
    def widest(self) -> Tensor:
        """The largest widths, float64, shape (G,)."""
        return torch.tensor([each[-1] for each in self.widths], dtype=torch.double)

    def planned(self, kept: Tensor) -> tuple[PlannedGroup, ...]:
        """Return the rows of the plan at some widths, shape (G,)."""
        return tuple(
            row
            if row.reason is not None
            else replace(
                row, kept=width, wanted=width, reason=reason if width == row.width else None
            )
            for row, reason, width in zip(
                self.rows, self.reasons, map(int, kept.tolist()), strict=True
            )
        )

    def limited(self, kept: Tensor) -> tuple[str, ...]:
        """Return of each group that shrinks what keeps it from a lesser width; see `limits`."""
        found = zip(kept.tolist(), self.rows, self.widths, self.limits, strict=True)
        return tuple(
            limit if width == each[0] < row.width else "" for width, row, each, limit in found
        )

    def at_one_share(self, limits: Sequence[Limit]) -> Tensor:
        """Return the widths at the largest share of all channels that is within limits."""
        for place in range(SHARES_TRIED, -1, -1):
            found = self.nearest([place / SHARES_TRIED] * len(self.widths))
            if hold(limits, found):
                break
        return found

    def nearest(self, shares: Sequence[float]) -> Tensor:
        """Return the widths nearest to a share of each group, float64, shape (G,)."""
        kept = [
            min(each, key=lambda width: abs(width - share * row.width))
            for each, row, share in zip(self.widths, self.rows, shares, strict=True)
        ]
        return torch.tensor(kept, dtype=torch.double)


def _least(width: int, floor: float, step: int) -> int:
    """Return the least multiple of a step that is no less than a share of a width."""
    return max(step, math.ceil(floor * width / step) * step)


def _made(structure: Structure) -> list[bool]:
    """Return of each group whether its channels are made as the model evaluates."""
    called = {node.target for node in structure.graphs[False].nodes if node.op == "call_module"}
    here = called | {*structure.parameters}
    return [not names or any(name in here for name in names) for names in makers(structure)]

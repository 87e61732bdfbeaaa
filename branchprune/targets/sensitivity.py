"""How much the output of a model needs the channels of each group, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from branchprune.graph.inputs import Example, copied
from branchprune.planning.columns import in_columns
from branchprune.planning.plan import plan
from branchprune.targets.error_curves import MeasuredErrors

ALONE = "the change of the output where a group alone shrinks: "
SHOWN = (0.75, 0.5, 0.25, 0.1)
"""Shares of a group's channels at which its change is printed."""


@dataclass(frozen=True)
class GroupSensitivity:
    """How the output changes with the width of one group alone.

    Attributes:
        name: Name of the group.
        errors: The change at each width from 0 to that of the group, falling.
        blocks: What a width is a multiple of.
        measured: Widths at which it was measured, with what was found.
    """

    name: str
    errors: tuple[float, ...]
    blocks: int
    measured: tuple[tuple[int, float], ...]

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.errors) - 1

    def at(self, share: float) -> tuple[int, float]:
        """Return the width nearest to a share of the channels, and the change there."""
        kept = max(1, round(share * self.width / self.blocks)) * self.blocks
        return kept, self.errors[kept]


@dataclass(frozen=True)
class Sensitivity:
    """How the output changes with each group.

    Attributes:
        groups: The groups, the most needed first; `print` shows them as a table.
        change: What the numbers are, with their unit.
    """

    groups: tuple[GroupSensitivity, ...]
    change: str

    def __str__(self) -> str:
        rows = [("group", "width", *(f"at {share:.0%}" for share in SHOWN))]
        for group in self.groups:
            changes = [f"{group.at(share)[1]:.3g}" for share in SHOWN]
            rows.append((group.name, f"{group.width}", *changes))
        return "\n".join([*in_columns(rows), ALONE + self.change])


def sensitivity(
    model: nn.Module,
    example: Example,
    batches: Iterable[Example] | MeasuredErrors,
    *,
    cache: str | Path | None = None,
    exclude: Sequence[str] = (),
    inside: str = "",
    opaque: Sequence[str] = (),
) -> Sensitivity:
    """Measure how much the output of a trained model changes with each group of channels alone.

    Channels are chosen by reconstruction, and what they leave is fitted by least squares; of
    vectors the change is the Kullback-Leibler divergence of their softmax, of other outputs the
    squared error as a share of their variance. What is printed between the measured widths follows
    from what channels leave unexplained of the others.

    ```python
    print(bp.sensitivity(model, images[:1], [images]))
    ```

    Args:
        model: The model; it is not changed.
        example: See `plan`.
        batches: See `plan`; or what has been measured on some, which plans share.
        cache: See `plan`.
        exclude: See `plan`.
        inside: See `plan`.
        opaque: See `plan`.

    Raises:
        PruneError: See `plan`.
    """
    errors = MeasuredErrors.on(batches, cache=cache)
    found = plan(model, example, 0.5, exclude=exclude, inside=inside, opaque=opaque)
    errors.measure(copied(model, sharing=True), found.structure, found.pruned)
    groups = []
    for i in found.pruned:
        group, curve = found.structure.groups[i], errors.curves[i]
        values = tuple(curve.errors.tolist())
        groups.append(GroupSensitivity(group.name, values, group.blocks, curve.measured))
    return Sensitivity(tuple(sorted(groups, key=lambda each: -each.at(0.5)[1])), errors.kind)

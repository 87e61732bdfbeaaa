"""How much the output of a model needs the channels of each group, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from branchprune.graph.inputs import Example, copied
from branchprune.planning.columns import in_columns
from branchprune.planning.plan import plan
from branchprune.targets.error_curves import MeasuredErrors
from branchprune.targets.plan import listed

SHOWN = (0.75, 0.5, 0.25, 0.1)
"""Shares of a group's channels at which its change is printed."""


@dataclass(frozen=True)
class GroupSensitivity:
    """How the output changes with the width of one group alone.

    Attributes:
        name: Name of the group.
        errors: The change at each width from 0 to that of the group, falling.
        measured: Widths at which it was measured, with what was found.
    """

    name: str
    errors: tuple[float, ...]
    measured: tuple[tuple[int, float], ...]

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.errors) - 1


@dataclass(frozen=True)
class Sensitivity:
    """How the output changes with each group; printed as a table, the most needed first."""

    groups: tuple[GroupSensitivity, ...]

    def __str__(self) -> str:
        rows = [("group", "width", *(f"at {share:.0%}" for share in SHOWN))]
        for group in sorted(self.groups, key=lambda each: -each.errors[each.width // 2]):
            kept = [max(1, round(share * group.width)) for share in SHOWN]
            changes = [f"{group.errors[k]:.3g}" for k in kept]
            rows.append((group.name, f"{group.width}", *changes))
        return "\n".join(
            [*in_columns(rows), "the change of the output where a group alone shrinks"]
        )


def sensitivity(
    model: nn.Module,
    example: Example,
    batches: Iterable[Example] | MeasuredErrors,
    *,
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
        exclude: See `plan`.
        inside: See `plan`.
        opaque: See `plan`.

    Raises:
        PruneError: See `plan`.
    """
    errors = batches if isinstance(batches, MeasuredErrors) else MeasuredErrors(listed(batches))
    found = plan(model, example, 0.5, exclude=exclude, inside=inside, opaque=opaque)
    errors.measure(copied(model, sharing=True), found.structure, found.pruned)
    return Sensitivity(
        tuple(
            GroupSensitivity(found.groups[i].name, tuple(each.errors.tolist()), each.measured)
            for i, each in errors.curves.items()
        )
    )

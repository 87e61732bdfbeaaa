"""How much the output of a model changes with the width of each channel group alone.

Channels are picked one by one, and what is then left unexplained of what is read (see
`branchprune.criteria.column_selection`) gives the shape of a group's curve. How much that counts at
the output is measured at two widths, with least squares and fresh statistics of BatchNorm, and the
curve is laid through both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from branchprune.blending.bn_recalibration import batch_norms
from branchprune.criteria.column_selection import pick
from branchprune.criteria.input_statistics import Reader, listening, readers
from branchprune.graph.inputs import Example, call, copied, tensors, training_mode
from branchprune.graph.structure import Structure
from branchprune.targets.group_alone import narrow_alone
from branchprune.targets.output_change import output_change

RIDGE = 0.03
MEASURED = (0.5, 0.25)
"""Shares of a group's channels at which the change of the output is measured."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The change of the output over the width of one group.

    Attributes:
        group: Its index.
        order: Its channels, the first to keep first.
        errors: The change at each width from 0 to that of the group, shape (C + 1,), falling.
        measured: Widths at which it was measured, with what was found.
    """

    group: int
    order: Tensor
    errors: Tensor
    measured: tuple[tuple[int, float], ...]


class Measurement:
    """The dense model on calibration inputs, of which groups are made narrow one at a time.

    Args:
        model: The model; a copy is run.
        structure: Its structure.
        batches: Inputs.
        groups: Which groups are asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Sequence[Example],
        groups: Sequence[int],
    ) -> None:
        self.model, self.structure, self.batches = copied(model).eval(), structure, batches
        self.listeners = readers(structure, groups)
        with training_mode(self.model, False), torch.no_grad():
            with listening(self.model, self.listeners):
                for batch in batches:
                    call(self.model, batch)
        self.norms = batch_norms(self.model)
        self.dense = self._outputs()

    def change(self, group: int, chosen: Tensor) -> float:
        """Return how much the output changes where a group keeps some channels alone.

        Args:
            group: The group.
            chosen: Indices of the channels, shape (k,).
        """
        here = self.read(group)
        with narrow_alone(self.model, self.structure, group, chosen, here, RIDGE):
            return output_change(self.dense, self._outputs())

    def read(self, group: int) -> list[Reader]:
        """Return what layers have read of a group."""
        return [each for each in self.listeners if each.group == group and each.count]

    def _outputs(self) -> list[Tensor]:
        """Return the outputs with the statistics of each batch in BatchNorm."""
        momenta = [norm.momentum for norm in self.norms]
        try:
            for norm in self.norms:
                norm.momentum = 0.0
                norm.train()
            with torch.no_grad():
                found = [_floats(call(self.model, batch)) for batch in self.batches]
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        return [torch.cat(each) for each in zip(*found, strict=True)]


def error_curve(measurement: Measurement, group: int) -> Curve:
    """Return the error curve of a group.

    Args:
        measurement: Of the model.
        group: Index of the group.
    """
    structure = measurement.structure
    width = structure.groups[group].width
    here = [
        each.reading(measurement.model.get_submodule(each.layer.name))
        for each in measurement.read(group)
    ]
    order, gains = pick(here, width)
    explained = gains[torch.arange(width), order].cumsum(0) / len(here)
    left = torch.cat([torch.ones(1, dtype=torch.double), 1 - explained]).clamp_min(1e-9)
    left = left.cummin(0).values
    widths = sorted({max(1, round(share * width)) for share in MEASURED})
    found = [(k, measurement.change(group, order[:k].sort().values)) for k in widths]
    return Curve(group, order, _through(left, found), tuple(found))


def _through(left: Tensor, measured: Sequence[tuple[int, float]]) -> Tensor:
    """Return `a · leftᵇ` through what was measured: errors at all widths, 0 at the last."""
    points = [(math.log(float(left[k])), math.log(max(found, 1e-12))) for k, found in measured]
    (x1, y1), (x0, y0) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 - x0 > 1e-6 else 1.0
    slope = min(3.0, max(0.3, slope))
    a = sum(y - slope * x for x, y in points) / len(points)
    errors = (a + slope * left.log()).exp()
    errors[-1] = 0.0
    return errors


def _floats(value: object) -> list[Tensor]:
    return [each for each in tensors(value) if each.is_floating_point()]

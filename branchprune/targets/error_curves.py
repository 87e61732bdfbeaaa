"""How much the output of a model changes with the width of each channel group alone.

Channels are picked one by one, and what is then left unexplained of what is read (see
`branchprune.criteria.column_selection`) gives the shape of a group's curve. How much that counts at
the output is measured at two widths, with least squares and fresh statistics of BatchNorm, and the
curve is laid through both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from branchprune.blending.bn_recalibration import batch_norms
from branchprune.criteria.column_selection import pick
from branchprune.criteria.input_statistics import Reader, listening, readers
from branchprune.criteria.named import CRITERIA
from branchprune.criteria.scores import group_weights, select
from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call, copied, tensors
from branchprune.graph.structure import Structure
from branchprune.targets.group_alone import narrow_alone
from branchprune.targets.output_change import output_change

RIDGE = 0.03
"""Of the least squares; see `fit_expand`."""
LEAST = 1e-9
"""What is left of a group that is explained wholly, and of an output that does not change."""
TAIL = 1e-6
"""What a curve falls by at least, as a share of its start."""
FLATTEST, STEEPEST = 0.3, 3.0
"""Exponents between which the change of the output follows what is left unexplained."""
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
        self.norms = batch_norms(self.model)
        with torch.no_grad(), listening(self.model, self.listeners):
            for batch in batches:
                call(self.model, batch)
        self.dense = self._outputs()
        if not self.dense or not all(bool(output.isfinite().all()) for output in self.dense):
            raise PruneError("target needs a model whose outputs on batches are finite numbers")

    def change(self, group: int, chosen: Tensor) -> float:
        """Return how much the output changes where a group keeps some channels alone.

        Args:
            group: The group.
            chosen: Indices of the channels, shape (k,).
        """
        here = self.read(group)
        with narrow_alone(self.model, self.structure, group, chosen, here, RIDGE):
            found = output_change(self.dense, self._outputs())
        if not math.isfinite(found):
            name = self.structure.groups[group].name
            raise PruneError(f"the output is not finite where {name} keeps {len(chosen)} channels")
        return found

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
        except (ValueError, RuntimeError) as error:
            raise PruneError(
                "batches must be inputs of forward, a tuple meaning several arguments, and large "
                f"enough for BatchNorm: {first_line(error)}"
            ) from error
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        return [torch.cat(each) for each in zip(*found, strict=True)]


def error_curve(measurement: Measurement, group: int, criterion: str = "reconstruction") -> Curve:
    """Return the error curve of a group.

    Args:
        measurement: Of the model.
        group: Index of the group.
        criterion: By which its channels are chosen; see `attach`.
    """
    model, structure = measurement.model, measurement.structure
    found = structure.groups[group]
    here = [each.reading(model.get_submodule(each.layer.name)) for each in measurement.read(group)]
    if criterion == "reconstruction" and here:
        order, gains = pick(here, found.width)
    else:
        weights = group_weights(model, structure, group, model, here, found.width)
        scores = CRITERIA[criterion if here else "l2"](weights)
        order = scores.argsort(descending=True, stable=True)
        # What no layer reads, as query and key in their product, counts by its weights.
        gains = (
            pick(here, found.width, order)[1] if here else scores.square().expand(len(scores), -1)
        )
    explained = gains[torch.arange(found.width), order].cumsum(0)
    left = (1 - explained / max(float(explained[-1]), 1e-300)).clamp_min(0.0)
    left = torch.cat([torch.ones(1, dtype=left.dtype), left]).cummin(0).values
    ranks = torch.empty_like(left[1:])
    ranks[order] = torch.arange(found.width, 0, -1, dtype=left.dtype)
    widths = {_multiple(share * found.width, found.blocks) for share in MEASURED}
    measured = [
        (k, measurement.change(group, select(ranks, k, found.blocks, found.strata)))
        for k in sorted(widths)
        if k < found.width
    ]
    return Curve(group, order, _through(left, measured), tuple(measured))


class MeasuredErrors:
    """How the output of a model changes with each group alone, measured once for several targets.

    Args:
        batches: Inputs on which that is measured.

    Attributes:
        curves: What was measured, by group.
    """

    def __init__(self, batches: Sequence[Example]) -> None:
        self.batches = batches
        self.curves: dict[int, Curve] = {}

    def __call__(
        self, model: nn.Module, structure: Structure, choices: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the changes at each width that each group may take.

        Args:
            model: The model, of all calls the same.
            structure: Its structure.
            choices: The widths of each group, rising; of one that stays it is one.
        """
        self.measure(model, structure, [i for i, each in enumerate(choices) if len(each) > 1])
        return [
            self.curves[i].errors[torch.tensor(each)].tolist() if len(each) > 1 else [0.0]
            for i, each in enumerate(choices)
        ]

    def measure(self, model: nn.Module, structure: Structure, groups: Sequence[int]) -> None:
        """Measure the curves of some groups, if they are missing.

        Args:
            model: The model.
            structure: Its structure.
            groups: Indices of the groups.
        """
        missing = [group for group in groups if group not in self.curves]
        if missing:
            measurement = Measurement(model, structure, self.batches, missing)
            self.curves |= {group: error_curve(measurement, group) for group in missing}


def _multiple(width: float, blocks: int) -> int:
    return max(blocks, round(width / blocks) * blocks)


def _through(left: Tensor, measured: Sequence[tuple[int, float]]) -> Tensor:
    """Return `a · leftᵇ` through what was measured: errors at all widths, 0 at the last.

    They fall with every channel, if only a little: that the others explain one on some inputs is no
    reason to leave it out where the target has room for it.
    """
    points = [
        (math.log(max(float(left[k]), LEAST)), math.log(max(found, LEAST))) for k, found in measured
    ]
    if not points:
        return torch.zeros_like(left)
    (x1, y1), (x0, y0) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 - x0 > 1e-6 else 1.0
    slope = min(STEEPEST, max(FLATTEST, slope))
    a = sum(y - slope * x for x, y in points) / len(points)
    errors = (a + slope * left.clamp_min(LEAST).log()).exp()
    errors[-1] = 0.0
    falling = torch.linspace(1, 0, len(errors), dtype=errors.dtype)
    return errors + TAIL * float(errors[0]) * falling


def _floats(value: object) -> list[Tensor]:
    return [each for each in tensors(value) if each.is_floating_point()]

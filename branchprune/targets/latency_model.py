"""The latency of a model as a function of the widths of its channel groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from branchprune.graph.structure import Pieces
from branchprune.planning.cost_model import Polynomial
from branchprune.targets.layer_times import LayerCall, LayerTimes


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """A sum of terms, each with a factor, in milliseconds.

    These are the times of layers, between measured widths interpolated on both sides of each; the
    numbers that layers make, for what is done to them (norms, activations, sums); the weights that
    are more than a cache holds, since a layer that is timed alone finds its own there; and a
    constant.

    Attributes:
        grids: Widths of inputs (R, P) and outputs (R, Q) of the calls, rising, float64.
        seconds: Times at them, shape (R, P, Q).
        inputs: How many input channels follow from the widths, shape (R, G).
        fixed_inputs: How many there are beside them, shape (R,).
        outputs: The same of output channels, shape (R, G).
        fixed_outputs: The same, shape (R,).
        elements: Numbers made for each channel of a group, shape (G,).
        fixed_elements: Numbers made beside them.
        weights: The parameters over the widths.
        cached: How many of them cost nothing.
        factors: Of the four terms.
    """

    grids: tuple[Tensor, Tensor]
    seconds: Tensor
    inputs: Tensor
    fixed_inputs: Tensor
    outputs: Tensor
    fixed_outputs: Tensor
    elements: Tensor
    fixed_elements: float
    weights: Polynomial
    cached: float = 0.0
    factors: tuple[float, ...] = (1000.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(
        cls, calls: Sequence[LayerCall], times: Sequence[LayerTimes], weights: Polynomial
    ) -> LatencyModel:
        """Return the model of some calls, not yet scaled.

        Args:
            calls: The calls of all layers.
            times: The times of each.
            weights: The parameters over the widths.
        """
        groups = len(weights.linear)
        ins = _padded([each.inputs for each in times])
        outs = _padded([each.outputs for each in times])
        seconds = torch.zeros(len(times), ins.shape[1], outs.shape[1], dtype=torch.double)
        for row, each in zip(seconds, times, strict=True):
            known = torch.tensor(each.seconds, dtype=torch.double)
            row[:] = known[-1, -1]
            row[: known.shape[0]] = torch.cat(
                [known, known[:, -1:].expand(-1, row.shape[1] - known.shape[1])], 1
            )
            row[known.shape[0] :] = row[known.shape[0] - 1]
        inputs, fixed_inputs = _sides(
            [each.inputs for each in calls], [each.shape[each.dim] for each in calls], groups
        )
        outputs, fixed_outputs = _sides([each.outputs for each in calls], [1] * len(calls), groups)
        per_channel = torch.tensor([each.elements for each in calls], dtype=torch.double)
        made = [each.outputs or each.inputs for each in calls]
        channels, fixed = _sides(made, [each.shape[each.dim] for each in calls], groups)
        return cls(
            (ins, outs),
            seconds,
            inputs,
            fixed_inputs,
            outputs,
            fixed_outputs,
            per_channel @ channels,
            float(per_channel @ fixed),
            weights,
        )

    def terms(self, kept: Tensor) -> Tensor:
        """Return what the factors belong to: the times of layers, the numbers made, and 1.

        Args:
            kept: The widths of all groups, float64, shape (G,).

        Returns:
            Float64, shape (4,).
        """
        layers = self.layer_seconds(kept).sum()
        made = self.elements @ kept + self.fixed_elements
        read = (torch.as_tensor(self.weights.total(kept)).to(kept) - self.cached).clamp_min(0.0)
        return torch.stack([layers, made, read, torch.ones_like(made)])

    def layer_seconds(self, kept: Tensor) -> Tensor:
        """Return the time of each call at some widths, float64, shape (R,)."""
        ins = self.inputs @ kept + self.fixed_inputs
        outs = self.outputs @ kept + self.fixed_outputs
        rows = torch.arange(len(self.seconds))
        return self._interpolated(rows, ins[:, None], outs[:, None])[:, 0]

    def of_groups(self, kept: Tensor) -> Tensor:
        """Return how many milliseconds go into making the channels of each group, shape (G,).

        What weights beyond the cache take, and the constant, belong to none.

        Args:
            kept: The widths of all groups, float64, shape (G,).
        """
        makes = self.outputs.any(1)
        made = torch.where(makes[:, None], self.outputs, self.inputs) * kept
        beside = torch.where(makes, self.fixed_outputs, self.fixed_inputs)
        shares = made / (made.sum(1) + beside).clamp_min(1e-300)[:, None]
        of_times, of_numbers, _, _ = self.factors
        return of_times * (self.layer_seconds(kept) @ shares) + of_numbers * self.elements * kept

    def scaled(self, widths: Sequence[Tensor], ms: Sequence[float]) -> LatencyModel:
        """Return it with the factors, none below 0, and the cache that fit measured times best.

        Args:
            widths: Of models that were timed.
            ms: The times.
        """
        from scipy.optimize import nnls

        wanted = torch.tensor(ms, dtype=torch.double)
        best, least = self, math.inf
        for cached in (0.0, *map(self.weights.total, widths)):
            model = replace(self, cached=cached)
            terms = torch.stack([model.terms(each) for each in widths])
            size = terms.amax(0).clamp_min(1e-300)
            # Relative errors, so that a small model counts as much as the dense one.
            found, left = nnls((terms / size / wanted[:, None]).numpy(), [1.0] * len(ms))
            if left < least:
                factors = (torch.from_numpy(found) / size).tolist()
                best, least = replace(model, factors=tuple(factors)), left
        return best

    def total(self, kept: Tensor) -> float:
        """Return the latency at some widths; see `CostModel`."""
        return float(self.terms(kept) @ torch.tensor(self.factors, dtype=torch.double))

    def changes(self, kept: Tensor, widths: Tensor, groups: slice) -> Tensor:
        """Return how it changes with the width of one group alone; see `CostModel`."""
        calls, which = self._moved(groups)
        of = torch.arange(len(kept))[groups][which]
        steps = widths - kept[groups, None]
        # The last column is the present width.
        moves = torch.cat([steps, torch.zeros_like(steps[:, :1])], 1)[which]
        ins = (self.inputs[calls] @ kept + self.fixed_inputs[calls])[:, None]
        outs = (self.outputs[calls] @ kept + self.fixed_outputs[calls])[:, None]
        seconds = self._interpolated(
            calls,
            ins + self.inputs[calls, of][:, None] * moves,
            outs + self.outputs[calls, of][:, None] * moves,
        )
        of_times, of_numbers, of_weights, _ = self.factors
        found = of_numbers * self.elements[groups, None] * steps
        beyond = self.weights.total(kept) - self.cached
        read = self.weights.changes(kept, widths, groups) + beyond
        found = found + of_weights * (read.clamp_min(0.0) - max(0.0, beyond))
        return found.index_add(0, which, of_times * (seconds[:, :-1] - seconds[:, -1:]))

    def _moved(self, groups: slice) -> tuple[Tensor, Tensor]:
        """Return the calls that each of some groups changes, and the place of the group."""
        key = groups.indices(self.inputs.shape[1])
        if key not in self._known:
            moved = (self.inputs != 0) | (self.outputs != 0)
            calls, which = moved[:, groups].nonzero(as_tuple=True)
            self._known[key] = calls, which
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
        return {}

    def _interpolated(self, rows: Tensor, ins: Tensor, outs: Tensor) -> Tensor:
        """Return the times of some calls at widths (N, K) of their inputs and outputs, (N, K)."""
        (xs, ys), seconds = self.grids, self.seconds
        i, p = _placed(xs[rows], ins)
        j, q = _placed(ys[rows], outs)
        row = rows[:, None]
        low = seconds[row, i, j] * (1 - q) + seconds[row, i, j + 1] * q
        high = seconds[row, i + 1, j] * (1 - q) + seconds[row, i + 1, j + 1] * q
        return (low * (1 - p) + high * p).clamp_min(0.0)


def _padded(grids: Sequence[Sequence[int]]) -> Tensor:
    """Return grids as the rows of one tensor, longer than they are by widths beyond the last."""
    most = max([2, *map(len, grids)])
    rows = [[*each, *(each[-1] + 1 + i for i in range(most - len(each)))] for each in grids]
    return torch.tensor(rows, dtype=torch.double).reshape(len(rows), most)


def _sides(
    sides: Sequence[Pieces | None], otherwise: Sequence[int], groups: int
) -> tuple[Tensor, Tensor]:
    """Return how many channels follow from each group, (R, G), and how many stay, (R,)."""
    following = torch.zeros(len(sides), groups, dtype=torch.double)
    fixed = torch.zeros(len(sides), dtype=torch.double)
    for row, (pieces, width) in enumerate(zip(sides, otherwise, strict=True)):
        if pieces is None:
            fixed[row] = width
        for piece in pieces or ():
            following[row, piece.group] += piece.repeat
    return following, fixed


def _placed(grid: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Return between which entries of a grid widths lie, and how far they are from the first."""
    places = torch.searchsorted(grid, widths.contiguous(), right=True) - 1
    places = places.clamp(0, grid.shape[1] - 2)
    first, second = grid.gather(1, places), grid.gather(1, places + 1)
    return places, (widths - first) / (second - first)

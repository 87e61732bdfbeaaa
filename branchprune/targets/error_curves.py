"""How much the output of a model changes with the width of each channel group alone.

Channels are picked one by one, and what is then left unexplained of what is read (see
`branchprune.criteria.column_selection`) gives the shape of a group's curve. How much that counts at
the output is measured at some widths, with least squares and fresh statistics of BatchNorm, and the
curve is laid through them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from branchprune.criteria.activations import statistic_of
from branchprune.criteria.column_selection import pick
from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.named import CRITERIA, GRADED, criterion_of
from branchprune.criteria.selection import Criterion, graded_for, scored, select
from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example
from branchprune.graph.structure import Structure
from branchprune.targets import error_cache
from branchprune.targets.error_cache import Curve
from branchprune.targets.measurement import Measurement

Init = str | Criterion
RECONSTRUCTION = "reconstruction"
KEPT = tuple(name for name in CRITERIA if name not in (*GRADED, "random"))
"""Criteria that see the weights and the batches alone, and draw nothing."""
LEAST = 1e-9
"""What is left of a group that is explained wholly, and of an output that does not change."""
TAIL = 1e-6
"""What a curve falls by at least, as a share of its start."""
FLATTEST, STEEPEST = 0.3, 3.0
"""Exponents between which the change of the output follows what is left unexplained."""
WORST = 10.0
"""Times the largest measured change, that is predicted of a narrower group at most."""
MEASURED = (0.5, 0.25)
"""Shares of a group's channels at which the change of the output is measured."""


def error_curve(measurement: Measurement, group: int, criterion: Init = RECONSTRUCTION) -> Curve:
    """Return the error curve of a group.

    Args:
        measurement: Of the model.
        group: Index of the group.
        criterion: By which its channels are chosen, as `init` of `attach`.
    """
    model, structure = measurement.model, measurement.structure
    found = structure.groups[group]
    here = [each.reading(model.get_submodule(each.layer.name)) for each in measurement.read(group)]
    if criterion == RECONSTRUCTION and here:
        order, gains = pick(here, found.width)
    else:
        judge = criterion_of("l2" if criterion == RECONSTRUCTION else criterion)
        given = graded_for(judge, measurement.graded, "criterion"), here, found.width
        weights = group_weights(model, structure, group, *given)
        scores = scored(judge, weights, "criterion").double().cpu()
        order = scores.argsort(descending=True, stable=True)
        if here:
            _, gains = pick(here, found.width, order)
        else:  # what no layer reads, as query and key in their product, counts by its weights
            gains = scores.square().expand(len(scores), -1)
    explained = gains[torch.arange(found.width), order].cumsum(0)
    left = (1 - explained / max(float(explained[-1]), 1e-300)).clamp_min(0.0)
    left = torch.cat([torch.ones(1, dtype=left.dtype), left]).cummin(0).values
    ranks = torch.empty_like(left[1:])
    ranks[order] = torch.arange(found.width, 0, -1, dtype=left.dtype)
    widths = {_multiple(share * found.width, found.blocks) for share in MEASURED}
    measured = [
        (k, measurement.change({group: select(ranks, k, found.blocks, found.strata)}))
        for k in sorted(widths)
        if k < found.width
    ]
    return Curve(group, ranks, _through(left, measured), tuple(measured))


class MeasuredErrors:
    """How the output of a model changes with each group alone, measured once for several targets.

    Args:
        batches: Inputs of the model on which that is measured.
        criterion: By which channels are chosen, as `init` of `attach`.
        cache: Folder that keeps curves, by the digest of the model, the batches and the name of the
            criterion; None: none are kept.

    Attributes:
        curves: What was measured, by group.

    Raises:
        PruneError: There are no batches, or a single tensor in their place, or there is no such
            criterion.
    """

    def __init__(
        self,
        batches: Iterable[Example] | None,
        criterion: Init = RECONSTRUCTION,
        cache: str | Path | None = None,
    ) -> None:
        criterion_of(criterion, "criterion")
        if isinstance(batches, Tensor):
            raise PruneError("batches must be several inputs of forward, such as [batch]")
        try:
            self.batches = [] if batches is None else [*batches]
        except TypeError:
            kind = type(batches).__name__
            raise PruneError(f"batches (a {kind}) must be several inputs") from None
        kinds = (Tensor, tuple, list, Mapping)
        if isinstance(batches, str | Mapping) or not all(
            isinstance(b, kinds) for b in self.batches
        ):
            raise PruneError(
                f"batches (={type(batches).__name__}) must be several inputs of forward, each a "
                "tensor, a tuple or a dictionary"
            )
        if not self.batches:
            raise PruneError(
                "target needs batches: some inputs of forward, on which errors are measured"
            )
        if not isinstance(cache, str | Path | None):
            raise PruneError(f"cache (={cache!r}) must be the path of a folder")
        self.criterion, self.cache = criterion, None if cache is None else Path(cache)
        self.curves: dict[int, Curve] = {}
        self._changes: dict[tuple[float, ...], float] = {}
        self._measurement: Measurement | None = None
        self._parameters: list[nn.Parameter] = []

    @classmethod
    def on(
        cls,
        batches: Iterable[Example] | MeasuredErrors | None,
        criterion: Init = RECONSTRUCTION,
        cache: str | Path | None = None,
    ) -> MeasuredErrors:
        """Return what is measured on batches; they may be such a measurement themselves.

        Raises:
            PruneError: That was made with another criterion or cache; see `MeasuredErrors`.
        """
        if not isinstance(batches, MeasuredErrors):
            return cls(batches, criterion, cache)
        if criterion not in (RECONSTRUCTION, batches.criterion) or cache is not None:
            raise PruneError("batches hold what was measured: criterion and cache belong to that")
        return batches

    def __call__(
        self, model: nn.Module, structure: Structure, choices: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the changes at each width that each group may take.

        Args:
            model: The model, of all calls the same.
            structure: Its structure.
            choices: The widths of each group, rising; of one that stays it is one.
        """
        widths = [group.width for group in structure.groups]
        narrower = [i for i, each in enumerate(choices) if each[0] < widths[i]]
        self.measure(model, structure, narrower)
        return [
            self.curves[i].errors[torch.tensor(each)].tolist() if i in narrower else [0.0]
            for i, each in enumerate(choices)
        ]

    @property
    def kind(self) -> str:
        """What of the outputs is measured, in words; "": nothing was."""
        return self._measurement.changed.kind if self._measurement else ""

    @one_at_a_time
    def measure(self, model: nn.Module, structure: Structure, groups: Sequence[int]) -> None:
        """Measure the curves of some groups, if they are missing.

        Args:
            model: The model.
            structure: Its structure.
            groups: Indices of the groups.

        Raises:
            PruneError: It is another model than before.
        """
        own = [*model.parameters()]
        if self.curves and [*map(id, own)] != [*map(id, self._parameters)]:
            raise PruneError("batches hold what was measured of another model: give inputs")
        self._parameters = own
        missing = [group for group in groups if group not in self.curves]
        if missing:
            known = [*self.curves, *missing]
            asked = statistic_of(criterion_of(self.criterion))
            self._measurement = Measurement(model, structure, self.batches, known, asked)
            self._changes = {}
            stored, key = self._stored(model, structure)
            for group in missing:
                kept = stored.get(group)
                self.curves[group] = kept or error_curve(self._measurement, group, self.criterion)
            if self.cache is not None and key and not {*missing} <= stored.keys():
                error_cache.write(self.cache, key, stored | self.curves)

    def _stored(self, model: nn.Module, structure: Structure) -> tuple[dict[int, Curve], str]:
        """Return what the cache has of a model, and its digest; "": nothing is kept."""
        if self.cache is None or self.criterion not in KEPT:
            return {}, ""
        key = error_cache.digest(model, structure, self.batches, self.criterion)
        widths = [group.width for group in structure.groups]
        return error_cache.read(self.cache, key, widths), key

    @one_at_a_time
    def change(self, kept: Tensor) -> float:
        """Return the change of the output with all groups narrow at once.

        Args:
            kept: The widths of all groups, shape (G,); those that are less than all were measured.
        """
        if self._measurement is None:  # no group may shrink, so none was measured
            return 0.0
        key = tuple(kept.tolist())
        if key not in self._changes:
            self._changes[key] = self._changed(self._measurement, kept)
        return self._changes[key]

    def _changed(self, measurement: Measurement, kept: Tensor) -> float:
        groups, chosen = measurement.structure.groups, {}
        for i, width in enumerate(map(int, kept.tolist())):
            if i in self.curves and width < groups[i].width:
                ranks = self.curves[i].ranks
                chosen[i] = select(ranks, width, groups[i].blocks, groups[i].strata)
        return measurement.change(chosen)


def _multiple(width: float, blocks: int) -> int:
    return max(blocks, round(width / blocks) * blocks)


def _through(left: Tensor, measured: Sequence[tuple[int, float]]) -> Tensor:
    """Return errors at all widths, 0 at the last, through what was measured.

    Between two widths they are `a · leftᵇ`, and beyond the outer ones, too. They fall with every
    channel, if only a little: that the others explain one on some inputs is no reason to leave it
    out where the target has room for it.
    """
    if not measured:
        return torch.zeros_like(left)
    logs = left.clamp_min(LEAST).log()
    places = [k for k, _ in measured]
    changes = [math.log(max(found, LEAST)) for _, found in measured]
    values = torch.empty_like(left)
    for k in range(len(left)):
        i = min(max(bisect_right(places, k) - 1, 0), max(len(places) - 2, 0))
        j = min(i + 1, len(places) - 1)
        run, rise = float(logs[places[j]] - logs[places[i]]), changes[j] - changes[i]
        slope = rise / run if run < -1e-6 else 1.0
        if not places[i] <= k <= places[j]:  # beyond what was measured
            slope = min(STEEPEST, max(FLATTEST, slope))
        near = j if k >= places[j] else i
        values[k] = changes[near] + slope * float(logs[k] - logs[places[near]])
    most = max(changes) + math.log(WORST)
    errors = values.clamp_max(most).exp().flip(0).cummax(0).values.flip(0)
    errors[-1] = 0.0
    return errors + TAIL * float(errors[0]) * torch.linspace(1, 0, len(errors), dtype=errors.dtype)

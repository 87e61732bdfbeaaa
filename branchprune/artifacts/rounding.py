"""A model in 8 bits: judged on images, with the layers in float32 whose rounding costs too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor, nn

from branchprune.artifacts.agreement import Agreement, agreement
from branchprune.artifacts.file_format import Rounder, Source
from branchprune.artifacts.parity import TOLERANCE
from branchprune.artifacts.quantization import Quantization, Quantized
from branchprune.errors import PruneError
from branchprune.runtimes.batch import DYNAMIC, Batch

TRIED = 64
"""Images, of those that judge, on which each layer is rounded alone."""
TOLD = 1.0
"""Points of loss above which the error of each layer is told, where no limit is given."""


def quantized(
    model: nn.Module,
    rounder: Rounder,
    run: Callable[[Source], nn.Module],
    batch: Batch,
    wanted: Quantization,
) -> tuple[Source, Quantized]:
    """Return what is written in 8 bits, and what that costs.

    Where more than `max_drop` points are lost, each layer is rounded alone, and the worst stay
    float32: as few as suffice, found by doubling and halving their number.

    Args:
        model: The model, in evaluation mode and on the CPU.
        rounder: Rounds it.
        run: Returns a module that runs it in the runtime that it is for.
        batch: The batch that the file takes.
        wanted: Images, and how much may be lost.

    Raises:
        PruneError: The quantiser or the runtime cannot take the model, or more is lost even with
            all layers in float32.
    """
    calibration, judges = wanted.divided()
    trial = _Trial(model, rounder, run, batch, wanted, len(calibration), judges)
    made, first = trial.judged([])
    if first.drop <= (TOLD if wanted.max_drop is None else wanted.max_drop):
        return made, first
    errors = trial.errors()
    kept = [] if wanted.max_drop is None else trial.fewest([*errors])
    made, found = trial.judged(kept)
    return made, replace(found, errors=errors)


def at_once(batch: Batch) -> dict[str, Any]:
    """Return in which batches `agreement` is to compare a file that takes a batch."""
    return {} if batch == DYNAMIC else {"batch_size": batch, "fixed": True}


@dataclass
class _Trial:
    """Rounds and judges, with ever more of the same layers in float32.

    Attributes:
        model: See `quantized`.
        rounder: See `quantized`.
        run: See `quantized`.
        batch: See `quantized`.
        wanted: See `quantized`.
        calibrated: Images that set ranges.
        judges: Those on which files are compared with the model (N, …).
        known: What was made and found, by how many layers stay in float32: fewer are the first of
            more.
        before: The score of the model, once it was asked for.
    """

    model: nn.Module
    rounder: Rounder
    run: Callable[[Source], nn.Module]
    batch: Batch
    wanted: Quantization
    calibrated: int
    judges: Tensor
    known: dict[int, tuple[Source, Quantized]] = field(default_factory=dict)
    before: float | None = None

    def judged(self, kept: Sequence[str]) -> tuple[Source, Quantized]:
        """Return what is written, and lost, with the first layers of those to keep in float32."""
        if len(kept) not in self.known:
            self.known[len(kept)] = self._judge([*kept])
        return self.known[len(kept)]

    def errors(self) -> dict[str, float]:
        """Return the error with each layer rounded alone, the worst first."""
        rounder, few = self.rounder, self.judges[:TRIED]
        found = {
            layer: self._agreement(rounder.reference(rounder.rounded(only=layer)), few).error
            for layer in rounder.layers
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def fewest(self, layers: Sequence[str]) -> Sequence[str]:
        """Return the first of some layers, as few as suffice in float32.

        Raises:
            PruneError: All of them do not.
        """
        low, high, allowed = 0, 1, self.wanted.max_drop or 0.0
        while self.judged(layers[:high])[1].drop > allowed:
            if high >= len(layers):
                raise PruneError(
                    f"max_drop (={allowed:g}): {self.judged(layers[:high])[1].drop:.2g} points are "
                    "lost even with every layer in float32"
                )
            low, high = high, min(2 * high, len(layers))
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.judged(layers[:middle])[1].drop <= allowed
            low, high = (low, middle) if enough else (middle, high)
        return layers[:high]

    def _judge(self, kept: list[str]) -> tuple[Source, Quantized]:
        source = self.rounder.rounded(kept)
        written = self.run(source)
        judged, score = self._agreement(written, self.judges), None
        drop = 100 * (1 - judged.value if judged.kind == "top-1" else judged.value)
        if judged.kind != "top-1" and judged.value <= TOLERANCE:
            drop = 0.0  # as float32 itself
        if self.wanted.score is not None:
            if self.before is None:
                self.before = self._score(self.model)
            score = self._score(written), self.before
            drop = max(0.0, score[1] - score[0])
        rounded, products = self.rounder.products(source)
        found = Quantized(judged, drop, score, self.calibrated, rounded, products, kept)
        return source, found

    def _agreement(self, module: nn.Module, images: Tensor) -> Agreement:
        return agreement(self.model, module, images, **at_once(self.batch))

    def _score(self, module: nn.Module) -> float:
        assert self.wanted.score is not None
        found: Any = self.wanted.score(module)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if not isinstance(found, Real) or not math.isfinite(found):
            raise PruneError(f"score (={found!r}) must return a number of points")
        return float(found)

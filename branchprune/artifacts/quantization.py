"""Models in 8 bits: judged on images, with the layers in float32 whose rounding costs too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.agreement import Agreement, agreement
from branchprune.artifacts.parity import TOLERANCE
from branchprune.errors import PruneError, not_negative, whole
from branchprune.graph.outputs import floats
from branchprune.runtimes.batch import DYNAMIC, Batch
from branchprune.runtimes.in_runtime import InRuntime
from branchprune.runtimes.onnx_int8 import Int8, rounded_operators
from branchprune.runtimes.runtime import Opened

BITS = (8, 16)
SAMPLES = 256
JUDGED = 1000
"""Images, at most, on which the file is compared with the model."""
TRIED = 64
"""Of them, those on which each layer is rounded alone."""
TOLD = 1.0
"""Points of loss above which the error of each layer is told."""
SHOWN = 5
"""Layers of which an error is printed."""

Score = Callable[[nn.Module], float]
"""Returns how good a module is, in points, of which more are better."""


@dataclass(frozen=True)
class Quantization:
    """What is asked for.

    Attributes:
        calibration: Images (N, …) as the model wants them, on the CPU; some set ranges, the others
            judge.
        samples: How many of them set ranges, at most, and at most half.
        max_drop: Points that may be lost; None: any.
        score: What says how good the model is; None: whether outputs agree with the model's.

    Raises:
        PruneError: A value is wrong.
    """

    calibration: Tensor
    samples: int = SAMPLES
    max_drop: float | None = None
    score: Score | None = None

    def __post_init__(self) -> None:
        whole("samples", self.samples, 1)
        if self.max_drop is not None:
            not_negative("max_drop", self.max_drop)
        if self.score is not None and not callable(self.score):
            raise PruneError(f"score (={self.score!r}) must take a module, and return its points")

    def shared(self) -> tuple[Tensor, Tensor]:
        """Return the images that set ranges, and those that judge, drawn alike in each call."""
        drawn = torch.randperm(len(self.calibration), generator=torch.Generator().manual_seed(0))
        some = min(self.samples, len(drawn) // 2)
        return self.calibration[drawn[:some]], self.calibration[drawn[some : some + JUDGED]]


@dataclass(frozen=True)
class Quantized:
    """A file in 8 bits, beside the model in float32.

    Attributes:
        judged: How far outputs agree, on images that set no ranges.
        drop: Points that were lost: of the score, or 100 where no image has the same class, or
            where outputs differ by as much as they are.
        score: Of the file and of the model, if something says how good they are.
        calibrated: Images that set ranges.
        rounded: Products (convolutions, fully connected layers) in whole numbers.
        products: All of them.
        kept: Layers in float32.
        errors: Relative error of the outputs with each layer rounded alone, the worst first; empty
            where too little was lost to ask.
    """

    judged: Agreement
    drop: float
    score: tuple[float, float] | None
    calibrated: int
    rounded: int
    products: int
    kept: Sequence[str] = ()
    errors: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        stays = f"; {', '.join(self.kept)} stay float32" if self.kept else ""
        lines = [
            f"INT8: {self.rounded} of {self.products} products in whole numbers, ranges from "
            f"{self.calibrated} images{stays}",
            f"on {self.judged.images} others {self.judged}",
        ]
        if self.score is not None:
            now, before = self.score
            lines.append(f"score: {now:.4g}, and {before:.4g} in float32")
        if self.errors:
            worst = [f"{name} {error:.2%}" for name, error in [*self.errors.items()][:SHOWN]]
            lines.append(f"rounded alone, outputs differ most by {', '.join(worst)}")
        return "\n".join(lines)


def check_judged(output: Any) -> None:
    """Raise PruneError for outputs that nobody could compare with those of 8 bits."""
    if not floats(output):
        raise PruneError(
            "quantize (=8): forward returns no floats, by which the file could be judged: return "
            "the scores, and take their argmax outside"
        )


def quantized(
    model: nn.Module,
    content: bytes,
    opened: Callable[[bytes], Opened],
    output: Any,
    batch: Batch,
    wanted: Quantization,
) -> tuple[bytes, Quantized]:
    """Return an ONNX model of 8 bits, and what that costs.

    Where more than `max_drop` points are lost, each layer is rounded alone, and the worst stay
    float32: as few as suffice, found by doubling and halving their number.

    Args:
        model: The model, in evaluation mode and on the CPU.
        content: It as ONNX.
        opened: Opens such a file in the runtime that it is for.
        output: What the model has returned once.
        batch: The batch that the file takes.
        wanted: Images, and how much may be lost.

    Raises:
        PruneError: The quantiser or the runtime cannot take the model, or more is lost even with
            all layers in float32.
    """
    with TemporaryDirectory(prefix="branchprune-int8-") as folder:
        ranges, judges = wanted.shared()
        int8 = Int8(content, ranges, batch, Path(folder))
        trial = _Trial(model, int8, opened, output, batch, wanted, judges)
        first = trial.judged([])
        if first.drop <= (TOLD if wanted.max_drop is None else wanted.max_drop):
            return int8.rounded(), first
        errors = trial.errors()
        kept = [] if wanted.max_drop is None else trial.fewest([*errors])
        found = trial.judged(kept)
        return int8.rounded(kept), Quantized(**vars(found) | {"errors": errors})


@dataclass
class _Trial:
    """Rounds and judges, with ever other layers in float32."""

    model: nn.Module
    int8: Int8
    opened: Callable[[bytes], Opened]
    output: Any
    batch: Batch
    wanted: Quantization
    judges: Tensor
    known: dict[int, Quantized] = field(default_factory=dict)
    before: float | None = None

    def judged(self, kept: Collection[str]) -> Quantized:
        """Return what is lost with some layers in float32."""
        if len(kept) not in self.known:
            self.known[len(kept)] = self._judge([*kept])
        return self.known[len(kept)]

    def errors(self) -> dict[str, float]:
        """Return the error with each layer rounded alone, the worst first."""
        found = {
            layer: self._agreement(self.int8.rounded(only=layer), self.judges[:TRIED]).error
            for layer in self.int8.nodes
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def fewest(self, layers: Sequence[str]) -> Sequence[str]:
        """Return the first of some layers, as few as suffice in float32.

        Raises:
            PruneError: All of them do not.
        """
        low, high, allowed = 0, 1, self.wanted.max_drop or 0.0
        while self.judged(layers[:high]).drop > allowed:
            if high >= len(layers):
                raise PruneError(
                    f"max_drop (={allowed:g}): {self.judged(layers[:high]).drop:.2g} points are "
                    "lost even with every layer in float32"
                )
            low, high = high, min(2 * high, len(layers))
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.judged(layers[:middle]).drop <= allowed
            low, high = (low, middle) if enough else (middle, high)
        return layers[:high]

    def _judge(self, kept: list[str]) -> Quantized:
        content = self.int8.rounded(kept)
        judged, score = self._agreement(content, self.judges), None
        drop = 100 * (1 - judged.value if judged.kind == "top-1" else judged.value)
        if judged.kind != "top-1" and judged.value <= TOLERANCE:
            drop = 0.0  # as float32 itself
        if self.wanted.score is not None:
            if self.before is None:
                self.before = self._score(self.model)
            score = self._score(self._module(content)), self.before
            drop = max(0.0, score[1] - score[0])
        rounded, products = rounded_operators(content)
        calibrated = min(self.wanted.samples, len(self.wanted.calibration) // 2)
        return Quantized(judged, drop, score, calibrated, rounded, products, kept)

    def _agreement(self, content: bytes, images: Tensor) -> Agreement:
        module = self._module(content)
        if self.batch == DYNAMIC:
            return agreement(self.model, module, images)
        return agreement(self.model, module, images, self.batch, fixed=True)

    def _module(self, content: bytes) -> nn.Module:
        return InRuntime(self.opened(content), self.output, self.batch).eval()

    def _score(self, module: nn.Module) -> float:
        assert self.wanted.score is not None
        found: Any = self.wanted.score(module)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if not isinstance(found, Real) or not math.isfinite(found):
            raise PruneError(f"score (={found!r}) must return a number of points")
        return float(found)

"""A model in 8 bits: what is asked for, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from branchprune.artifacts.agreement import Agreement
from branchprune.errors import PruneError, not_negative, whole

SAMPLES = 256
JUDGED = 1000
"""Images, at most, on which the file is compared with the model."""
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

    def divided(self) -> tuple[Tensor, Tensor]:
        """Return the images that set ranges, and those that judge: the same in each call."""
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

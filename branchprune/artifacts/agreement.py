"""How well the small model stands for the dense one on images that nothing was learnt from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import training_mode
from branchprune.graph.outputs import are_logits, floats
from branchprune.runtimes.batch import of_batch

Z = 1.959964
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class Agreement:
    """A mean over images that were held out, with its interval of 95 %.

    Attributes:
        kind: "top-1": the share of images of which both models name the same class; "relative
            error": the mean over images of `‖y − y'‖ / ‖y‖` of their outputs.
        value: The mean.
        low: Lower end of the interval: Wilson's for shares, else the normal one.
        high: Its upper end.
        images: Number of images.
        error: The mean relative error, also beside "top-1": of vectors (N, k) nobody says whether
            they are classes or k numbers.
    """

    kind: str
    value: float
    low: float
    high: float
    images: int
    error: float

    def __str__(self) -> str:
        if self.kind == "top-1":
            interval = f"{self.low:.1%} to {self.high:.1%}"
            return (
                f"the class is the same for {self.value:.1%} (95 % interval {interval}), and the "
                f"mean relative error of the outputs is {100 * self.error:.3g}%"
            )
        value, low, high = (f"{100 * number:.3g}%" for number in (self.value, self.low, self.high))
        interval = f" (95 % interval {low} to {high})" if math.isfinite(self.low) else ""
        return f"the mean relative error of the outputs is {value}{interval}"


def agreement(
    dense: nn.Module,
    small: nn.Module,
    images: Tensor,
    batch_size: int = 64,
    fixed: bool = False,
) -> Agreement:
    """Compare two models on images, in evaluation mode.

    Outputs that are not image by image are compared as one for each batch.

    Args:
        dense: The dense model.
        small: The small one.
        images: What both see (N, …), on their device.
        batch_size: Images at a time.
        fixed: Whether the models take no other number: the last are filled up, and count once.

    Raises:
        PruneError: The models return no floats.
    """
    shares: list[float] = []
    errors: list[float] = []
    with torch.no_grad(), training_mode(dense, False), training_mode(small, False):
        few = of_batch(images, batch_size) if fixed else images[:2]
        by_image = _is_by_image(dense(few), len(few))
        for batch in images.split(batch_size if by_image or fixed else 1):
            given = of_batch(batch, batch_size) if fixed else batch
            wanted, found = dense(given), small(given)
            pair, n = (floats(wanted), floats(found)), len(given) if by_image else 1
            errors += _relative_errors(*pair, n).tolist()[: len(batch)]
            if by_image and are_logits(wanted):
                shares += _same_class(*pair).tolist()[: len(batch)]
    values = shares or errors
    value = math.fsum(values) / len(values)
    low, high = (_wilson if shares else _normal)(values, value)
    kind = "top-1" if shares else "relative error"
    return Agreement(kind, value, low, high, len(images), math.fsum(errors) / len(errors))


def _is_by_image(outputs: Any, images: int) -> bool:
    """Return whether each output begins with the batch."""
    compared = floats(outputs)
    if not compared:
        raise PruneError("forward returns no floats by which outputs could be compared")
    return all(tensor.shape[:1] == (images,) for tensor in compared)


def _same_class(wanted: list[Tensor], found: list[Tensor]) -> Tensor:
    same = [w.argmax(1) == f.argmax(1) for w, f in zip(wanted, found, strict=True)]
    return torch.stack(same).all(0).cpu().double()


def _relative_errors(wanted: list[Tensor], found: list[Tensor], n: int) -> Tensor:
    missed, size = (
        torch.cat([x.cpu().double().reshape(n, -1) for x in each], 1).norm(dim=1)
        for each in ([f - w for w, f in zip(wanted, found, strict=True)], wanted)
    )
    errors: Tensor = missed / size.clamp_min(torch.finfo(torch.float64).tiny)
    return errors


def _wilson(shares: list[float], value: float) -> tuple[float, float]:
    n = len(shares)
    middle = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    return middle - half, middle + half


def _normal(values: list[float], mean: float) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = Z * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean - half, mean + half

"""What the narrow model is to match: features that layers read, and outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from branchprune.few_images.head import Read
from branchprune.graph.outputs import are_logits, floats

Match = Literal["head", "maps", "junctions", "outputs"]
Error = Literal["relative", "mean"]
TEMPERATURE = 4.0
HINT_WEIGHT = 5.0
"""Weight of the mean error of the hints at first, where that of the head is 1."""
Distance = Callable[[Any, Any], Tensor]
"""Returns how far outputs are from those of the dense model, a number to minimise."""


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return `Σ ‖x − u‖² / Σ ‖u‖²` over all tensors, in float32; 0 where every u is 0."""
    missed, size = torch.zeros(()), torch.zeros(())
    for x, u in zip(found, wanted, strict=True):
        missed = missed.to(u.device) + (x.float() - u.float()).square().sum()
        size = size.to(u.device) + u.float().square().sum()
    return missed / size.masked_fill(size == 0, torch.inf)


def mean_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean of `(x − u)²` over all entries, in float32, of the mean tensor."""
    pairs = zip(found, wanted, strict=True)
    return torch.stack([F.mse_loss(x.float(), u.float()) for x, u in pairs]).mean()


def features_error(
    found: Read,
    wanted: Read,
    error: Error = "relative",
    hints: Collection[str] = (),
    hint_weight: float = HINT_WEIGHT,
) -> Tensor:
    """Return the mean error over the layers of what they read.

    Args:
        found: What the layers read, call by call.
        wanted: What they are to read.
        error: See `mismatch`.
        hints: Of the layers, those whose own mean error is added to that of the others.
        hint_weight: Its weight.
    """
    measure = relative_error if error == "relative" else mean_error
    errors = {name: measure(found[name], wanted[name]) for name in found}
    inside = [errors.pop(name) for name in [*errors] if name in hints]
    terms = [torch.stack([*errors.values()]).mean()] if errors else []
    terms += [hint_weight * torch.stack(inside).mean()] if inside else []
    return torch.stack(terms).sum()


def outputs_error(found: Any, wanted: Any) -> Tensor:
    """Return the relative error of the outputs that are floats."""
    return relative_error(floats(found), floats(wanted))


def divergence(found: Any, wanted: Any) -> Tensor:
    """Return the mean divergence of logits from those wanted, at a temperature, times its square.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    pairs = zip(floats(found), floats(wanted), strict=True)
    logs = [[(x.float() / TEMPERATURE).log_softmax(1) for x in pair] for pair in pairs]
    terms = [F.kl_div(x, u, reduction="batchmean", log_target=True) for x, u in logs]
    return torch.stack(terms).mean() * TEMPERATURE**2


def mismatch(
    match: Match,
    read: tuple[Read, Read],
    outputs: tuple[Any, Any],
    error: Error = "relative",
    covered: bool = True,
    hints: Collection[str] = (),
    hint_weight: float = HINT_WEIGHT,
) -> Tensor:
    """Return what is minimised, a number.

    Args:
        match: "outputs": the relative error of the outputs, or the divergence of logits; else:
            that of what was read, and, where outputs are no vectors of classes or do not follow
            from it, of the outputs, too.
        read: What layers read, in the narrow and in the dense model; see `Targets`.
        outputs: The outputs of both.
        error: Of what was read: "relative", `Σ ‖x − u‖² / Σ ‖u‖²`, or the "mean" of `(x − u)²`.
        covered: Whether all outputs follow from what was read.
        hints: See `features_error`.
        hint_weight: See `features_error`.
    """
    logits = are_logits(outputs[1])
    if match == "outputs":
        return divergence(*outputs) if logits else outputs_error(*outputs)
    some = any(read[0].values())
    terms = [features_error(*read, error, hints, hint_weight)] if some else []
    if not logits or not terms or not covered:
        terms.append(outputs_error(*outputs))
    return torch.stack(terms).sum()

"""What the narrow model is to match: the features that the head reads, and outputs of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from branchprune.few_images.head import Read
from branchprune.graph.inputs import tensors

Distance = Callable[[Any, Any], Tensor]
"""Returns how far outputs are from those of the dense model, a number to minimise."""


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return `Σ ‖x − u‖² / Σ ‖u‖²` over all tensors, in float32; 0 where every u is 0."""
    missed, size = torch.zeros(()), torch.zeros(())
    for x, u in zip(found, wanted, strict=True):
        missed = missed.to(u.device) + (x.float() - u.float()).square().sum()
        size = size.to(u.device) + u.float().square().sum()
    return missed / size.clamp_min(torch.finfo(torch.float32).tiny)


def features_error(found: Read, wanted: Read) -> Tensor:
    """Return the mean relative error of what the layers of the head read."""
    errors = [relative_error(found[name], wanted[name]) for name in found]
    return torch.stack(errors).mean()


def outputs_error(found: Any, wanted: Any) -> Tensor:
    """Return the relative error of the outputs that are floats."""
    return relative_error(floats(found), floats(wanted))


def floats(outputs: Any) -> list[Tensor]:
    """Return the tensors of outputs that are floats, however nested."""
    return [tensor for tensor in tensors(outputs) if tensor.is_floating_point()]


def are_logits(outputs: Any) -> bool:
    """Return whether all outputs are vectors (N, classes), of which the largest entry counts."""
    return all(tensor.dim() == 2 for tensor in floats(outputs))

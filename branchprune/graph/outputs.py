"""What a model's outputs are: tensors of floats, and whether they are scores of classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from branchprune.graph.inputs import tensors


def floats(outputs: Any) -> list[Tensor]:
    """Return the tensors of outputs that are floats, however nested."""
    return [tensor for tensor in tensors(outputs) if tensor.is_floating_point()]


def are_logits(outputs: Any) -> bool:
    """Return whether all outputs are vectors (N, classes), of which the largest entry counts."""
    scores = floats(outputs)
    return bool(scores) and all(each.dim() == 2 and each.shape[1] > 1 for each in scores)

"""The batch in an example: which of its tensors have one, and the same example in another."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from branchprune.errors import PruneError, whole
from branchprune.graph.inputs import Example, example_inputs, tensors

Batch = int | Literal["dynamic"]
"""The batch that a file takes: of so many examples, or of any number."""
DYNAMIC: Literal["dynamic"] = "dynamic"


def check_batch(batch: object) -> None:
    """Raise PruneError for what is neither a number of examples nor "dynamic"."""
    if batch == DYNAMIC:
        return
    if isinstance(batch, str):
        raise PruneError(f"batch (={batch!r}) must be 'dynamic', or a whole number of at least 1")
    whole("batch", batch, 1)


def batch_of(example: Example) -> int:
    """Return how many examples an example holds: the first size of the tensor with most sizes.

    Raises:
        PruneError: It has no tensor with a size.
    """
    widest = max(tensors(example), key=Tensor.dim, default=torch.tensor(0))
    if not widest.dim():
        raise PruneError("example has no tensor with a batch dimension")
    if not len(widest):
        raise PruneError("example has a batch of 0: give one with an input in it")
    return len(widest)


def has_batch(tensor: object, size: int) -> bool:
    """Return whether a tensor of an example with a batch of that size has this batch."""
    return isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == size


def of_batch(example: Example, size: int) -> Example:
    """Return an example with its inputs again and again, or the first of them, as many as wanted.

    Tensors whose first size is not that of the batch stay as they are.
    """
    now = batch_of(example)

    def resized(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(size) % now] if has_batch(tensor, now) else tensor

    result: Example = tree_map_only(Tensor, resized, example)
    return result


def dynamic_dimensions(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return for each argument of forward which sizes are free, as torch.export takes it.

    Those are the sizes of the batch, which are equal; all others are fixed.
    """
    now, batch = batch_of(example), torch.export.Dim("batch")
    found: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(
        lambda leaf: {0: batch} if has_batch(leaf, now) else None, example_inputs(example)
    )
    return found

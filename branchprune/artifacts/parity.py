"""Whether a file computes what the model computes, in the runtime of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call, own_buffers, tensors
from branchprune.runtimes.batch import DYNAMIC, Batch, batch_of, has_batch, of_batch
from branchprune.runtimes.in_runtime import in_tensors
from branchprune.runtimes.runtime import Opened

TOLERANCE = 1e-5
"""max |Δ| / max |model's|: a few roundings of float32, and far below what a wrong operator does."""
SIZES = (1, 3, 7)
"""Batches on which a file is compared that takes any."""
LEAST = 8
"""Inputs beside the example on which a file is compared that takes one batch."""


def parity(model: nn.Module, opened: Opened, example: Example, batch: Batch) -> dict[int, float]:
    """Return how far a file's outputs are from the model's, for each size of a batch.

    Inputs are the example and noise of its mean and standard deviation, the same in every call;
    whole numbers and truth values are drawn from those in the example, whole examples of tensors
    with infinite ones, and tensors without the batch stay as they are.

    Args:
        model: The model, in evaluation mode and on the CPU.
        opened: The file.
        example: An example input, on the CPU.
        batch: The batch that the file takes.

    Returns:
        max |Δ| / max |model's| of the worst output; inf for whole numbers that differ, other shapes
        and another number of outputs.

    Raises:
        PruneError: The runtime cannot run the file.
    """
    found: dict[int, float] = {}
    for inputs in _inputs(example, batch):
        wanted = tensors(outputs_of(model, inputs))
        for each in wanted:
            if each.is_floating_point() and each.numel() and not each.isfinite().any():
                raise PruneError(
                    f"{type(model).__name__}: an output has no finite number on the example, or on "
                    "noise that is like it, so that nothing can be compared"
                )
        size, error = batch_of(inputs), difference(in_tensors(opened(inputs)()), wanted)
        found[size] = max(found.get(size, 0.0), error)
    return dict(sorted(found.items()))


def outputs_of(model: nn.Module, example: Example) -> Any:
    """Return what a model in evaluation mode computes; it is left as it was.

    Raises:
        PruneError: It does not take the example.
    """
    try:
        with torch.no_grad(), own_buffers(model):
            return call(model, example)
    except Exception as error:  # whatever forward raises
        kind, shapes = type(model).__name__, ", ".join(str((*t.shape,)) for t in tensors(example))
        raise PruneError(
            f"an example of shape {shapes} does not pass through {kind}: {first_line(error)}"
        ) from error


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return max |Δ| / max |wanted| of the worst tensor; inf where they cannot be compared."""
    if len(found) != len(wanted):
        return math.inf
    return max((_error(*pair) for pair in zip(found, wanted, strict=True)), default=0.0)


def _error(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return math.inf
    if not wanted.is_floating_point():
        return 0.0 if bool((found == wanted).all()) else math.inf
    found, wanted = found.double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(
        found[~finite].nan_to_num(0.0), wanted[~finite].nan_to_num(0.0)
    ):
        return math.inf
    apart = (found[finite] - wanted[finite]).abs()
    if not apart.any():
        return 0.0
    return float(apart.max() / wanted[finite].abs().max())


def _inputs(example: Example, batch: Batch) -> Iterator[Example]:
    """Yield the example, and noise that is like it."""
    sizes = SIZES if batch == DYNAMIC else [batch] * math.ceil(LEAST / batch)
    yield example if batch == DYNAMIC else of_batch(example, batch)
    noise, now = torch.Generator().manual_seed(0), batch_of(example)
    for size in sizes:
        draw = partial(_like, size=size, noise=noise)
        drawn: Example = tree_map_only(
            Tensor, lambda x, draw=draw: draw(x) if has_batch(x, now) else x, example
        )
        yield drawn


def _like(tensor: Tensor, size: int, noise: torch.Generator) -> Tensor:
    """Return a batch of noise that is like a tensor."""
    shape = (size, *tensor.shape[1:])
    if not tensor.is_floating_point():
        return tensor.flatten()[torch.randint(tensor.numel(), shape, generator=noise)]
    deviation = float(tensor.std()) if tensor.numel() > 1 else 0.0
    if not math.isfinite(deviation) or not tensor.mean().isfinite():  # as of a mask: -inf
        return tensor[torch.randint(len(tensor), (size,), generator=noise)]
    drawn = torch.randn(shape, generator=noise)
    return (drawn * (deviation or 1.0) + tensor.mean()).to(tensor.dtype)

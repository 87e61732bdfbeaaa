"""A file in a runtime as a module of PyTorch, so that what judges models can judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, example_inputs, tensors
from branchprune.runtimes.batch import DYNAMIC, Batch, of_batch
from branchprune.runtimes.runtime import Opened


class InRuntime(nn.Module):
    """Runs a file on images, and returns what its model would.

    Args:
        opened: The file.
        output: What the model has returned once: outputs have its form.
        batch: The batch that the file takes. Of a fixed one, images are given in parts of that
            many, the last of which is filled up.
        largest: The largest batch of a file that takes any; None: there is none.
    """

    def __init__(
        self, opened: Opened, output: Any, batch: Batch = DYNAMIC, largest: int | None = None
    ) -> None:
        super().__init__()
        self.opened, self.output, self.batch, self.largest = opened, output, batch, largest

    def forward(self, images: Tensor) -> Any:
        """Return the outputs on images (N, …).

        Raises:
            PruneError: The images are given in parts, or filled up, and an output does not begin
                with the batch.
        """
        if self.batch == DYNAMIC:
            given = [*images.split(self.largest or len(images))]
        else:
            given = [of_batch(part, self.batch) for part in images.split(self.batch)]
        parts = [in_tensors(self.opened(part)()) for part in given]
        fits = len(given) == 1 and len(given[0]) == len(images)
        if not fits:
            _check_batches(parts, [len(part) for part in given])
        joined = zip(*parts, strict=True)
        whole = parts[0] if fits else [torch.cat(each)[: len(images)] for each in joined]
        left = iter([each.to(images.device) for each in whole])
        return tree_map_only(Tensor, lambda _: next(left), self.output)


class OnImages(nn.Module):
    """Calls a model of one input as an example does, perhaps by a keyword.

    Args:
        model: The model, or its forward.
        example: The example.
    """

    def __init__(self, model: Callable[..., Any], example: Example) -> None:
        super().__init__()
        self.model, self.example = model, example

    def forward(self, images: Tensor) -> Any:
        """Return the outputs on images (N, …)."""
        args, kwargs = tree_map_only(Tensor, lambda _: images, example_inputs(self.example))
        return self.model(*args, **kwargs)


def _check_batches(parts: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> None:
    """Raise PruneError for outputs that do not begin with the batch: they cannot be joined."""
    for outputs, size in zip(parts, sizes, strict=True):
        for each in outputs:
            if each.shape[:1] != (size,):
                raise PruneError(
                    f"an output of shape {tuple(each.shape)} does not begin with the batch, "
                    f"{size}: what it is of several batches is not known"
                )


def in_tensors(outputs: Any) -> list[Tensor]:
    """Return the outputs of a runtime, in PyTorch's tensors."""
    if isinstance(outputs, Mapping) and not all(isinstance(key, str) for key in outputs):
        outputs = [*outputs.values()]  # of OpenVINO, by its own objects
    if isinstance(outputs, list) and not any(isinstance(each, Tensor) for each in outputs):
        return [torch.as_tensor(each) for each in outputs]
    return tensors(outputs)

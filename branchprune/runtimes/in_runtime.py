"""A file in a runtime as a module of PyTorch, so that what judges models can judge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.graph.inputs import tensors
from branchprune.runtimes.batch import DYNAMIC, Batch, of_batch
from branchprune.runtimes.runtime import Opened


class InRuntime(nn.Module):
    """Runs a file on images, and returns what its model would.

    Args:
        opened: The file.
        output: What the model has returned once: outputs have its form. Each begins with the batch.
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
        """Return the outputs on images (N, …)."""
        if self.batch == DYNAMIC:
            given = [*images.split(self.largest or len(images))]
        else:
            given = [of_batch(part, self.batch) for part in images.split(self.batch)]
        parts = [in_tensors(self.opened(part)()) for part in given]
        whole = [torch.cat(each)[: len(images)] for each in zip(*parts, strict=True)]
        left = iter([each.to(images.device) for each in whole])
        return tree_map_only(Tensor, lambda _: next(left), self.output)


def in_tensors(outputs: Any) -> list[Tensor]:
    """Return the outputs of a runtime, in PyTorch's tensors."""
    if isinstance(outputs, Mapping) and not all(isinstance(key, str) for key in outputs):
        outputs = [*outputs.values()]  # of OpenVINO, by its own objects
    if isinstance(outputs, list) and not any(isinstance(each, Tensor) for each in outputs):
        return [torch.as_tensor(each) for each in outputs]
    return tensors(outputs)

"""Looks of the dense model at views of the images, each of which may serve several steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.few_images.head import Read

KEPT = 8
"""Batches, of which one is drawn where the dense model does not look at a new one."""


@dataclass(frozen=True)
class Look:
    """What the dense model makes of a batch.

    Attributes:
        images: The batch (N, …).
        outputs: Its outputs.
        read: What its layers have read; see `reading`.
    """

    images: Tensor
    outputs: Any
    read: Read


def looks(
    dense: nn.Module,
    read: Mapping[str, list[Tensor]],
    batches: Iterator[Tensor],
    each: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Iterator[Look]:
    """Yield looks without end, one a step.

    Args:
        dense: The dense model.
        read: What its layers read; see `reading`.
        batches: Views without end.
        each: Steps for which a look serves: in the others one of the last looks is drawn.
        dtype: In which a pass is computed.
        generator: Draws them.
    """
    last = deque[Look](maxlen=KEPT if each > 1 else 1)
    while True:
        for step in range(each):
            if step == 0 or not last:
                last.append(_look(dense, read, next(batches), dtype))
                yield last[-1]
            else:
                yield last[int(torch.randint(len(last), (), generator=generator))]


def _look(
    dense: nn.Module, read: Mapping[str, list[Tensor]], images: Tensor, dtype: torch.dtype
) -> Look:
    for tensors in read.values():
        tensors.clear()
    with torch.no_grad(), in_dtype(images, dtype):
        outputs = dense(images)
    return Look(images, outputs, {name: [*tensors] for name, tensors in read.items()})


def in_dtype(images: Tensor, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which passes are computed in a dtype; weights stay as they are."""
    return torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)

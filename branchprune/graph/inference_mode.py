"""`torch.inference_mode`, whose tensors lack what a trace follows them by, and gradients need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Make ordinary tensors, without gradients as before, for a `with` block."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(values: T) -> T:
    """Return tensors, in any nest, with copies of those that were made in inference mode."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.is_inference() else tensor

    found: T = tree_map_only(Tensor, copy, values)
    return found

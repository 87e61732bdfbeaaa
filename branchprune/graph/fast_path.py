"""Attention of torch as its own Python computes it.

In evaluation torch computes `nn.TransformerEncoder` by a function of its own, which puts zeros at
positions that are masked, and of which no multiply-adds are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.nn.modules import transformer


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let attention be computed by functions that are counted, for a `with` block."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def without_looking_at_masks() -> Iterator[None]:
    """Let torch take masks as they are, for a `with` block, instead of looking at their numbers.

    A mask that it finds to be causal is computed faster; what is computed is the same.
    """

    def is_causal(mask: Tensor | None, said: bool | None = None, size: int | None = None) -> bool:
        return said is True

    with mock.patch.object(transformer, "_detect_is_causal_mask", is_causal):
        yield

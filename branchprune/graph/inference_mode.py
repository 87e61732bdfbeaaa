"""`torch.inference_mode`, whose tensors lack what a trace follows them by, and gradients need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Make ordinary tensors, without gradients as before, for a `with` block."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield

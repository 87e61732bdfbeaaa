"""What quantisers have in common: how images are given to them, and whose their errors are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from branchprune.errors import PruneError, first_line
from branchprune.runtimes.batch import DYNAMIC, Batch
from branchprune.runtimes.captured import quiet

AT_ONCE = 16
"""Images of which ranges are taken at a time, of a file that takes any batch."""


def calibration_batches(images: Tensor, batch: Batch) -> Sequence[Tensor]:
    """Return the images that set ranges (N, …) in batches as a file takes them."""
    if batch == DYNAMIC:
        parts: Sequence[Tensor] = images.split(AT_ONCE)
        return parts
    return [part[torch.arange(batch) % len(part)] for part in images.split(batch)]


@contextmanager
def quantising(by: str) -> Iterator[None]:
    """Say of any error of a quantiser that it is its own, for a `with` block.

    Args:
        by: Whose quantiser it is.

    Raises:
        PruneError: It has raised one.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # whatever it and its parts raise
        raise PruneError(
            f"quantize (=8): the quantiser of {by} fails: {first_line(error)}"
        ) from error

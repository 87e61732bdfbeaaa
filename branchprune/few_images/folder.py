"""A folder of images as a tensor, normalised as a model wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from branchprune.data.files import Size, read_frames, read_images
from branchprune.errors import PruneError


def read_folder(
    folder: str | Path,
    size: int | Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Read all images of a folder, however nested.

    Args:
        folder: The folder.
        size: Height and width that images are resized to, one number for both; None: all must
            have the same size.
        mean: What is subtracted from each channel of images in [0, 1], R, G, B; None: 0.
        std: What each channel is then divided by, R, G, B; None: 1.

    Returns:
        Tensor of shape (N, 3, H, W), float32.

    Raises:
        PruneError: The folder is missing, an image cannot be read or has another size, or `mean`
            and `std` are not three numbers each.
    """
    shift, scale = _channels("mean", mean, 0.0), _channels("std", std, 1.0)
    if bool((scale <= 0).any()):
        raise PruneError(f"std (={std}) must be above 0")
    both = (size, size) if isinstance(size, int) else size
    if both is not None and min(both) < 1:
        raise PruneError(f"size (={size}) must be at least 1")
    images = read_images(read_frames([Path(folder)]), both)
    normalised: Tensor = (images.float() / 255 - shift) / scale
    return normalised


def _channels(name: str, values: Sequence[float] | None, default: float) -> Tensor:
    found = torch.tensor([default] * 3 if values is None else [*map(float, values)])
    if found.shape != (3,) or not bool(found.isfinite().all()):
        raise PruneError(f"{name} (={values}) must be three finite numbers, for R, G and B")
    return found.view(3, 1, 1)

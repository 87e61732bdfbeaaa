"""A folder of images as a tensor, normalised as a model wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from branchprune.data.files import Size, read_frames, read_images
from branchprune.errors import PruneError

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of R, G and B in grey, as in ITU-R BT.601, which Pillow takes, too."""


def read_folder(
    folder: str | Path,
    size: int | Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grey: bool = False,
) -> Tensor:
    """Read all images of a folder, however nested.

    Args:
        folder: The folder.
        size: Height and width that images are resized to, one number for both; None: all must
            have the same size.
        mean: What is subtracted from each channel of images in [0, 1], R, G, B; None: 0.
        std: What each channel is then divided by, R, G, B; None: 1.
        grey: Whether images get one channel, their luminance; `mean` and `std` are then one number.

    Returns:
        Tensor of shape (N, 3, H, W), or (N, 1, H, W), float32.

    Raises:
        PruneError: The folder is missing, an image cannot be read or has another size, or `mean`
            and `std` are not a number for each channel.
    """
    count = 1 if grey else 3
    shift, scale = _channels("mean", mean, 0.0, count), _channels("std", std, 1.0, count)
    if bool((scale <= 0).any()):
        raise PruneError(f"std (={std}) must be above 0")
    both = (size, size) if isinstance(size, int) else size
    if both is not None and min(both) < 1:
        raise PruneError(f"size (={size}) must be at least 1")
    images = read_images(read_frames([Path(folder)]), both).float() / 255
    if grey:
        images = (images * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
    normalised: Tensor = (images - shift) / scale
    return normalised


def _channels(name: str, values: Sequence[float] | None, default: float, count: int) -> Tensor:
    found = torch.tensor([default] * count if values is None else [*map(float, values)])
    if found.shape != (count,) or not bool(found.isfinite().all()):
        wanted = "one finite number" if count == 1 else "three finite numbers, for R, G and B"
        raise PruneError(f"{name} (={values}) must be {wanted}")
    return found.view(count, 1, 1)

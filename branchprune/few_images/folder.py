"""A folder of images as a tensor, normalised as a model wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchprune.errors import PruneError, optional

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of R, G and B in grey, as in ITU-R BT.601, which Pillow takes, too."""


def read_folder(
    folder: str | Path,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grey: bool = False,
) -> Tensor:
    """Read all images of a folder, however nested.

    ```python
    images = bp.read_folder("my_images", 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ```

    Args:
        folder: The folder.
        size: Height and width of the result, one number for both: images are resized until both
            sides fill it, and what is over at two ends is cut off; None: all must have the same
            size.
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
    files = _files()
    images = files.read_images(files.read_frames([Path(folder)]), both, crop=True).float() / 255
    if grey:
        images = (images * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
    normalised: Tensor = (images - shift) / scale
    return normalised


def read_prepared(folder: str | Path, prepare: Callable[[Any], Tensor]) -> Tensor:
    """Read all images of a folder, however nested, as a library prepares them for its models.

    Args:
        folder: The folder.
        prepare: Makes a tensor (C, H, W) of an image in RGB.

    Returns:
        Tensor of shape (N, C, H, W).

    Raises:
        PruneError: The folder is missing, an image cannot be read, or they come out in several
            sizes.
    """
    files = _files()
    found = [prepare(files.decoded(path)) for path in files.read_frames([Path(folder)])]
    shapes = sorted({tuple(image.shape) for image in found})
    if len(shapes) > 1:
        few = ", ".join(map(str, shapes[:3]))
        raise PruneError(
            f"images of {folder}, prepared as the library does, differ in shape: {few}; give them "
            "one by image_size"
        )
    return torch.stack(found)


def _files() -> Any:
    """Return what reads images; the core is imported without it."""
    for package in ("PIL", "pytorch_lightning", "torchvision"):
        optional(package, "read_folder")
    from branchprune.data import files

    return files


def _channels(name: str, values: Sequence[float] | None, default: float, count: int) -> Tensor:
    found = torch.tensor([default] * count if values is None else [*map(float, values)])
    if found.shape != (count,) or not bool(found.isfinite().all()):
        wanted = "one finite number" if count == 1 else "three finite numbers, for R, G and B"
        raise PruneError(f"{name} (={values}) must be {wanted}")
    return found.view(count, 1, 1)

"""Decoded images that are kept, so that the next process need not decode the same files again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import numpy as np
import PIL
import torch
from torch import Tensor

VARIABLE = "BRANCHPRUNE_IMAGE_CACHE"
"""Of the environment: the folder where they are kept; without it none are."""
DECODING = 1
"""To be raised with any change of what images are decoded to."""


def cached(paths: list[Path], how: str, read: Callable[[], Tensor]) -> Tensor:
    """Return images as they were read before from the same files, or read and keep them.

    A file counts as the same by its path, its size, and the times when its content and its entry
    were written. What cannot be kept, as on a full disk, is only read.

    Args:
        paths: Where they are.
        how: What else they depend on, such as their size.
        read: Reads them: uint8 (N, C, H, W).
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return read()
    try:
        file = Path(folder) / f"{_digest(paths, how)}.npy"
    except OSError:
        return read()  # which says what is wrong with a path
    try:
        found = np.load(file, allow_pickle=False)
        if found.dtype == np.uint8 and found.ndim == 4 and len(found) == len(paths):
            return torch.from_numpy(found)
    except (OSError, ValueError, EOFError):
        pass
    images = read()
    part = file.with_name(f".{file.name}.{token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as opened:
            np.save(opened, images.numpy(), allow_pickle=False)
        part.replace(file)
    except OSError:
        return images
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return images


def _digest(paths: list[Path], how: str) -> str:
    found = hashlib.sha256(f"{DECODING} {PIL.__version__} {how}".encode())
    for path in paths:
        state = path.stat()
        times = f"{state.st_mtime_ns}\0{state.st_ctime_ns}"
        found.update(f"{path.absolute()}\0{state.st_size}\0{times}\0".encode())
    return found.hexdigest()[:32]

"""Patches of two photographs that come with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from branchprune.data.memory import InMemory, Splits, at_least
from branchprune.errors import PruneError

TEST_FRACTION = 0.2


class Photographs(InMemory):
    """Square patches of a temple and of a flower (427x640 each), for autoencoders.

    Inputs are in [0, 1]; targets are the inputs without noise. Each photograph is cut into three
    upright bands, from left to right: training, validation (`val_fraction` of its width) and test
    (a fifth). A patch lies within one band, so no pixel is in two splits, whatever the stride.
    Nothing is drawn: `split_seed` matters for `limit_train` alone.

    Args:
        patch_size: Height and width of a patch.
        stride: Pixels from a patch to the next; None: `patch_size`, so that none overlap.
        options: See `InMemory`.

    Raises:
        PruneError: An argument is out of its range.
    """

    name = "photographs"

    def __init__(self, patch_size: int = 32, stride: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        at_least("patch_size", patch_size, 1)
        at_least("stride", stride, 1)
        self.patch_size, self.stride = patch_size, stride or patch_size

    def load(self) -> Splits:
        """Cut the patches.

        Raises:
            PruneError: A patch is larger than a band.
        """
        photographs = _photographs()
        width = photographs.shape[3]
        test = width - round(TEST_FRACTION * width)
        val = max(0, test - round(self.val_fraction * width))
        bands = {"train": (0, val), "val": (val, test), "test": (test, width)}
        return {
            split: (self._patches(photographs[..., left:right], split), None)
            for split, (left, right) in bands.items()
        }

    def _patches(self, band: Tensor, split: str) -> Tensor:
        """Return all patches (N, 3, patch_size, patch_size) of bands (2, 3, H, W)."""
        size = self.patch_size
        if size > min(band.shape[2:]):
            height, width = band.shape[2:]
            raise PruneError(
                f"patch_size (={size}) is more than the {split} band, {height}x{width} "
                f"(height x width, val_fraction (={self.val_fraction}))"
            )
        patches = band.unfold(2, size, self.stride).unfold(3, size, self.stride)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


def _photographs() -> Tensor:
    """Return both photographs, uint8 (2, 3, 427, 640)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_sample_images().images
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

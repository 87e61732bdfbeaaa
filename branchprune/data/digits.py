"""Handwritten digits that come with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from branchprune.errors import PruneError, not_negative

Batches = DataLoader[tuple[Tensor, ...]]


class Digits(LightningDataModule):
    """1797 grey images of digits, 8x8: 60 % for training, 20 % each for validation and test.

    Args:
        batch_size: Images a batch.
        image_size: Height and width; other sizes than 8 are interpolated.
        channels: Channels of the image; 3 repeats the grey values.
        reconstruct: Give each image as its own target instead of its class.
        split_seed: Seed of the split, and of the noise.
        noise: Standard deviation of normal noise on the images, in units of the grey value; a
            target of `reconstruct` has none, so there it is denoising.
    """

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 8,
        channels: int = 1,
        reconstruct: bool = False,
        split_seed: int = 0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise PruneError(f"batch_size (={batch_size}) must be at least 1")
        for name, value in (("image_size", image_size), ("channels", channels)):
            if value < 1:
                raise PruneError(f"{name} (={value}) must be at least 1")
        not_negative("noise", noise)
        self.batch_size, self.image_size, self.channels = batch_size, image_size, channels
        self.reconstruct, self.split_seed, self.noise = reconstruct, split_seed, noise
        self.splits: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images."""
        if self.splits:
            return
        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        images = images.expand(-1, self.channels, -1, -1)
        if self.image_size != images.shape[-1]:
            size = (self.image_size, self.image_size)
            images = interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        indices = list(range(len(labels)))
        rest, test = train_test_split(
            indices, test_size=0.2, stratify=labels, random_state=self.split_seed
        )
        train, val = train_test_split(
            rest, test_size=0.25, stratify=labels[rest], random_state=self.split_seed
        )
        target = images if self.reconstruct else labels
        if self.noise:
            generator = torch.Generator().manual_seed(self.split_seed)
            images = images + self.noise * torch.randn(images.shape, generator=generator)
        for name, index in (("train", train), ("val", val), ("test", test)):
            self.splits[name] = TensorDataset(images[index], target[index])

    def _batches(self, split: str) -> Batches:
        train = split == "train"
        return DataLoader(self.splits[split], self.batch_size, shuffle=train, drop_last=train)

    def train_dataloader(self) -> Batches:
        """Return shuffled training batches of images (N, 1, H, W) and targets."""
        return self._batches("train")

    def val_dataloader(self) -> Batches:
        """Return validation batches."""
        return self._batches("val")

    def test_dataloader(self) -> Batches:
        """Return test batches."""
        return self._batches("test")

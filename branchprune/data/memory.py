"""The base of data modules that keep all images in memory, on the device of the training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn.functional import interpolate

from branchprune.data.batches import Augmentation, Batches, epoch_seed
from branchprune.errors import PruneError

Splits = dict[str, tuple[Tensor, Tensor | None]]


class InMemory(LightningDataModule, ABC):
    """Images as uint8 on the trainer's device, augmented there a batch at a time.

    Subclasses implement `load`. With labels a batch is normalised inputs (n, C, H, W),
    `(x - mean) / std` by channel, and classes (n,). Without, it is inputs in [0, 1] (unless `mean`
    and `std` are given) and, as their targets, the inputs before noise.

    Training batches are shuffled and all full. Order and augmentation depend on `seed` and the
    number of the epoch alone, never on a global random generator: a run that was killed and
    resumed goes on with the very batches it would have seen. The epoch is the trainer's; without a
    trainer, epochs are counted as they begin.

    Args:
        batch_size: Images a training batch.
        eval_batch_size: Images a batch in validation and test.
        val_fraction: Part of the training images that is held out for validation, by class.
        split_seed: Seed of what is held out, and of what `limit_train` chooses.
        seed: Seed of the order and the augmentation; None: torch's when this is made.
        crop_padding: Pixels of border on every side of a training image, of which a crop as large
            as before is then taken. The border has the mean colour, that is 0 in a normalised
            input; where nothing is normalised it is black.
        flip: Mirror half of the training images left to right.
        noise: Standard deviation of normal noise on training inputs, after crop and flip, in units
            of the grey value of [0, 1]; a target has none.
        numbered: Training batches have a third entry: which of the training images these are, (n,),
            for a teacher that remembers what it said of each.
        limit_train: Use only so many training images, by class as all of them; for small
            experiments. What is held out for validation does not change.
        image_size: Resize all images once, such that their shorter side has so many pixels
            (bilinear, antialiased).
        channels_last: Memory format of the batches.
        mean: What is subtracted from each channel, C numbers in units of the grey value of [0, 1],
            as a model was trained with: [0.485, 0.456, 0.406] for weights from ImageNet. None: the
            mean of the training images, and 0 without labels.
        std: What each channel is then divided by, C numbers, given with `mean`; for weights from
            ImageNet [0.229, 0.224, 0.225]. None: the standard deviation of the training images (1
            for a channel that is constant), and 1 without labels.

    Attributes:
        name: What result lines call the data.
        classes: Names of the classes, by label; empty without labels.
        mean: What is subtracted, (C,). Known after `setup`.
        std: What is divided by, (C,). Known after `setup`.

    Raises:
        PruneError: An argument is out of its range.
    """

    name: str = ""
    crop_size: int | None = None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        noise: float = 0.0,
        numbered: bool = False,
        limit_train: int | None = None,
        image_size: int | None = None,
        channels_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        at_least("batch_size", batch_size, 1)
        at_least("eval_batch_size", eval_batch_size, 1)
        at_least("split_seed", split_seed, 0)
        at_least("seed", seed, 0)
        at_least("crop_padding", crop_padding, 0)
        at_least("noise", noise, 0)
        at_least("limit_train", limit_train, 1)
        at_least("image_size", image_size, 1)
        if not 0 < val_fraction < 1:
            raise PruneError(f"val_fraction (={val_fraction}) must be in (0, 1)")
        if (mean is None) != (std is None):
            raise PruneError(f"mean (={mean}) and std (={std}) must be given together, or neither")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise PruneError(f"std (={std}) must be above 0, and finite")
        if mean is not None and not all(map(math.isfinite, mean)):
            raise PruneError(f"mean (={mean}) must be finite")
        self.given_statistics = None if mean is None or std is None else (mean, std)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.seed = torch.initial_seed() if seed is None else seed
        self.augmentation = Augmentation(crop_padding, flip, noise)
        self.limit_train, self.image_size = limit_train, image_size
        self.numbered, self.channels_last = numbered, channels_last
        self.classes: list[str] = []
        self.splits: Splits = {}
        self.epochs_begun = 0

    @abstractmethod
    def load(self) -> Splits:
        """Return images, uint8 (N, C, H, W), and labels, int64 (N,) or None, of every split.

        "train" and "test" are needed; without "val", part of "train" is held out.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images; a second time nothing happens.

        Raises:
            PruneError: The data cannot be read, or are too few for the arguments.
        """
        if self.splits:
            return
        splits = {name: (resized(x, self.image_size), y) for name, (x, y) in self.load().items()}
        if "val" not in splits:
            n = len(splits["train"][0])
            count = max(1, round(self.val_fraction * n))
            if count >= n:
                raise PruneError(f"val_fraction (={self.val_fraction}) leaves none of {n} images")
            splits["val"], splits["train"] = _divided(*splits["train"], count, self.split_seed)
        n = len(splits["train"][0])
        if self.limit_train not in (None, n):
            if self.limit_train > n:
                raise PruneError(f"limit_train (={self.limit_train}) is more than the {n} images")
            splits["train"], _ = _divided(*splits["train"], self.limit_train, self.split_seed)
            n = self.limit_train
        if n < self.batch_size:
            raise PruneError(
                f"batch_size (={self.batch_size}) is more than the {n} training images"
            )
        self.mean, self.std = self._statistics(*splits["train"])
        self.splits = splits

    def train_dataloader(self) -> Batches:
        """Return the training batches; every `iter` of them is an epoch."""
        return self._batches("train", self.batch_size, self.augmentation)

    def val_dataloader(self) -> Batches:
        """Return the validation batches: in order, not augmented."""
        return self._batches("val", self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        """Return the test batches: in order, not augmented."""
        return self._batches("test", self.eval_batch_size)

    def _batches(self, split: str, size: int, augmentation: Augmentation | None = None) -> Batches:
        self.setup()
        images, labels = self._on_device(split)
        height, width = images.shape[2:]
        return Batches(
            images,
            labels,
            size,
            self.mean.to(images.device),
            self.std.to(images.device),
            (self.crop_size or height, self.crop_size or width),
            self.channels_last,
            augmentation,
            self._epoch_seed,
            self.numbered,
        )

    def _statistics(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return by what inputs are normalised: what was given, or that of the training images."""
        if self.given_statistics is None:
            return _measured(images, labels)
        mean, std = self.given_statistics
        if not len(mean) == len(std) == images.shape[1]:
            raise PruneError(
                f"mean (={mean}) and std (={std}) must have a number for each of the "
                f"{images.shape[1]} channels"
            )
        return torch.tensor(mean), torch.tensor(std)

    def _on_device(self, split: str) -> tuple[Tensor, Tensor | None]:
        """Move a split to the trainer's device, where it stays."""
        device = torch.device("cpu")
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                raise PruneError(f"devices (={self.trainer.world_size}) must be 1 for {self.name}")
            device = self.trainer.strategy.root_device
        images, labels = self.splits[split]
        self.splits[split] = images.to(device), labels if labels is None else labels.to(device)
        return self.splits[split]

    def _epoch_seed(self) -> int:
        """Return the seed of the epoch that begins."""
        epoch = self.epochs_begun
        if self.trainer is not None:
            epoch = self.trainer.current_epoch
        else:
            self.epochs_begun += 1
        return epoch_seed(self.seed, epoch)


def at_least(name: str, value: float | None, least: int) -> None:
    """Raise PruneError for an argument that is given and less than `least`."""
    if value is not None and not least <= value < math.inf:
        raise PruneError(f"{name} (={value}) must be at least {least}")


def resized(images: Tensor, size: int | None) -> Tensor:
    """Return images, uint8 (N, C, H, W), whose shorter side has `size` pixels, or as they are."""
    shorter = min(images.shape[2:])
    if size is None or size == shorter:
        return images
    height, width = (round(side * size / shorter) for side in images.shape[2:])
    parts = [
        interpolate(part.float(), (height, width), mode="bilinear", antialias=True)
        for part in images.split(1024)  # as float32 they need four times the memory
    ]
    return torch.cat([part.round_().clamp_(0, 255).byte() for part in parts])


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose some images at random, from every class its part.

    Args:
        labels: int64 (N,).
        count: How many to choose; what is left of rounding goes to the largest remainders.
        seed: Seed of the choice.

    Returns:
        Indices of the chosen (count,) and of the others, each in ascending order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    shares = (sizes * count).double() / len(labels)
    quota = shares.floor().long()
    largest = (shares - quota).argsort(descending=True, stable=True)
    quota[largest[: count - int(quota.sum())]] += 1
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(labels)) - starts.repeat_interleave(sizes)
    chosen = rank < quota.repeat_interleave(sizes)
    return order[chosen].sort().values, order[~chosen].sort().values


def _divided(
    images: Tensor, labels: Tensor | None, count: int, seed: int
) -> list[tuple[Tensor, Tensor | None]]:
    kinds = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    parts = stratified(kinds, count, seed)
    return [(images[part], labels if labels is None else labels[part]) for part in parts]


def _measured(images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel, in units of the grey value of [0, 1]."""
    channels = images.shape[1]
    if labels is None:
        return torch.zeros(channels), torch.ones(channels)
    histograms = [images[:, i].flatten().bincount(minlength=256) for i in range(channels)]
    shares = torch.stack(histograms).double() * channels / images.numel()
    grey = torch.linspace(0, 1, 256, dtype=torch.double)
    mean = shares @ grey
    std = (shares * (grey - mean[:, None]).square()).sum(1).sqrt()
    return mean.float(), torch.where(std == 0, 1, std).float()

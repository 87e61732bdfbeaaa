"""Batches of images that are already in memory, augmented a batch at a time on their device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch; no two pairs of small numbers share one."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, in this order.

    Attributes:
        padding: Pixels of border on every side before the random crop.
        flip: Mirror half of the images left to right.
        noise: Standard deviation of normal noise, in units of the grey value of [0, 1].
    """

    padding: int = 0
    flip: bool = False
    noise: float = 0.0


@dataclass(frozen=True)
class _Epoch:
    """What is drawn for an epoch: tensors (N,), in the order of the batches.

    Attributes:
        order: Index of the image.
        top: First row of the crop; negative in the border.
        left: First column of the crop.
        mirrored: Whether the crop is mirrored.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor

    def part(self, start: int, end: int) -> _Epoch:
        values = (self.order, self.top, self.left, self.mirrored)
        return _Epoch(*(value[start:end] for value in values))


@dataclass
class Batches:
    """The batches of a split; every `iter` is an epoch of its own.

    Iterating gives inputs (n, C, h, w), float32, and targets: labels (n,), or without labels the
    inputs as they are before noise is added. Training batches (`augmentation` given) are shuffled,
    augmented and all full; the others are in order, complete, and cropped in the middle. What an
    epoch draws depends on its seed alone, and no global random generator is touched. Order, crops
    and flips are the same on every device; the noise is drawn on the device.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), or None.
        size: Images a batch.
        mean: (C,), on the device of the images, in units of the grey value of [0, 1]; subtracted.
        std: (C,), the same; inputs are divided by it.
        crop: Height and width (h, w) of the inputs.
        channels_last: Memory format of the images.
        augmentation: What happens to training images. The border of `padding` is `mean`: 0 in the
            normalised input.
        seed: Returns the seed of the epoch that begins; asked when its first batch is.
        numbered: Training batches have a third entry, which images these are: int64 (n,).
    """

    images: Tensor
    labels: Tensor | None
    size: int
    mean: Tensor
    std: Tensor
    crop: tuple[int, int]
    channels_last: bool = False
    augmentation: Augmentation | None = None
    seed: Callable[[], int] = int
    numbered: bool = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.size)
        return full + (self.augmentation is None and rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.augmentation is None:
            return self._in_order()
        return self._augmented(self.augmentation)

    def _in_order(self) -> Iterator[tuple[Tensor, ...]]:
        (height, width), (h, w) = self.images.shape[2:], self.crop
        top, left = (height - h) // 2, (width - w) // 2
        for start in range(0, len(self.images), self.size):
            part = slice(start, start + self.size)
            clean = self._normalised(self.images[part, :, top : top + h, left : left + w])
            yield self._batch(clean, clean, None if self.labels is None else self.labels[part])

    def _augmented(self, augmentation: Augmentation) -> Iterator[tuple[Tensor, ...]]:
        seed = self.seed()
        epoch = self._draw(augmentation, seed)
        generator = torch.Generator(self.images.device).manual_seed(seed)
        for start in range(0, len(self) * self.size, self.size):
            part = epoch.part(start, start + self.size)
            clean = self._cropped(part, border=augmentation.padding > 0)
            inputs = clean
            if augmentation.noise:
                normal = torch.empty_like(clean).normal_(generator=generator)
                inputs = clean + normal * (augmentation.noise / self.std[:, None, None])
            labels = None if self.labels is None else self.labels[part.order]
            batch = self._batch(inputs, clean, labels)
            yield (*batch, part.order) if self.numbered else batch

    def _draw(self, augmentation: Augmentation, seed: int) -> _Epoch:
        generator = torch.Generator().manual_seed(seed)
        n, padding = len(self.images), augmentation.padding
        order = torch.randperm(n, generator=generator)
        mirrored = torch.rand(n, generator=generator) < (0.5 if augmentation.flip else 0.0)
        top, left = (
            torch.randint(whole + 2 * padding - part + 1, (n,), generator=generator) - padding
            for whole, part in zip(self.images.shape[2:], self.crop, strict=True)
        )
        device = self.images.device
        return _Epoch(*(drawn.to(device) for drawn in (order, top, left, mirrored)))

    def _cropped(self, part: _Epoch, border: bool) -> Tensor:
        """Return the normalised crops (n, C, h, w): one gather, in which a flip costs nothing."""
        (height, width), (h, w) = self.images.shape[2:], self.crop
        rows = part.top[:, None] + torch.arange(h, device=part.top.device)
        columns = part.left[:, None] + torch.arange(w, device=part.top.device)
        columns = torch.where(part.mirrored[:, None], columns.flip(1), columns)
        inside_rows, inside_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        places = (inside_rows[:, :, None] * width + inside_columns[:, None]).flatten(1)
        images = self.images[part.order].flatten(2)
        pixels = images.gather(2, places[:, None].expand(-1, images.shape[1], -1))
        crops = self._normalised(pixels.unflatten(2, self.crop))
        if border:
            inside = (rows == inside_rows)[:, :, None] & (columns == inside_columns)[:, None]
            crops *= inside[:, None]
        return crops

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = 255 * self.mean[:, None, None], 255 * self.std[:, None, None]
        return pixels.float().sub_(mean).div_(std)

    def _batch(self, inputs: Tensor, clean: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=layout)
        if labels is not None:
            return inputs, labels
        # Memory of its own: a model may work in place on its input.
        return inputs, clean.clone(memory_format=layout)

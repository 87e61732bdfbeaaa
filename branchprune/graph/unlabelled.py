"""Images without labels: taken from a tensor or batches, and held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from branchprune.errors import PruneError

Images = Tensor | Iterable[object]
CHANNELS = (1, 3, 4)
"""Of images: grey ones, and colours without and with opacity."""
MOST = 100_000
"""Images that are taken of batches that have no end, or more."""


def gather(images: Images) -> Tensor:
    """Return images as one tensor.

    Args:
        images: A tensor (N, C, H, W), or batches of such: an iterable of tensors, or of tuples and
            lists, whose first entry is taken and whose labels are not looked at.

    Returns:
        Tensor of shape (N, …), float32.

    Raises:
        PruneError: There are fewer than two images, they differ in shape, or hold numbers that are
            not finite.
    """
    found = images if isinstance(images, Tensor) else _joined(images)
    if found.dim() < 2 or len(found) < 2:
        raise PruneError(
            f"images (of shape {tuple(found.shape)}) must be at least two, (N, C, H, W): one is "
            "held out"
        )
    if found.layout != torch.strided:
        raise PruneError(f"images ({found.layout}) must be dense: images.to_dense()")
    if not found.is_floating_point():
        raise PruneError(
            f"images (of dtype {found.dtype}) must be floats, normalised as the model wants them"
        )
    bad = (~found.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise PruneError(
            f"images: {len(bad)} of {len(found)} hold NaN or infinity, the first is "
            f"images[{bad[0]}]"
        )
    return found.detach()


def _joined(batches: object) -> Tensor:
    if isinstance(batches, str | PathLike):
        raise PruneError(
            f"images (={str(batches)!r}) must be a tensor or batches; a folder is read by "
            f"bp.read_folder({str(batches)!r}, size, mean, std), or by `branchprune compress`"
        )
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise PruneError(
            f"images (a {type(batches).__name__}) must be batches: "
            "DataLoader(images, batch_size=64)"
        )
    if not isinstance(batches, Iterable):
        raise PruneError(f"images (a {type(batches).__name__}) must be a tensor or batches")
    found: list[Tensor] = []
    for batch in batches:
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(first, Tensor):
            raise PruneError(
                f"images has a batch that is a {type(first).__name__}, not a tensor"
                f"{_way_out(first)}"
            )
        found.append(first)
        if sum(map(len, found)) >= MOST:
            break
    shapes = {tuple(tensor.shape[1:]) for tensor in found}
    if len(shapes) > 1:
        few = ", ".join(map(str, islice(sorted(shapes), 3)))
        raise PruneError(f"images differ in shape: {few}; resize or crop them to one")
    if not found:
        raise PruneError("images is empty")
    _refuse_single(found)
    return torch.cat(found)


def _refuse_single(batches: Sequence[Tensor]) -> None:
    """Raise PruneError for what may be images one by one, of which the channels would be images."""
    [shape, *others] = {tuple(batch.shape) for batch in batches}
    if not others and len(batches) > 1 and len(shape) == 3 and shape[0] in CHANNELS:
        raise PruneError(
            f"images are {len(batches)} tensors of shape {shape}: if each is one image, give "
            "torch.stack([*images]); if each is a batch, torch.cat([*images])"
        )


def _way_out(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f": give (batch[{next(iter(batch), 'image')!r}] for batch in images), or another key"
    return ": torch.from_numpy" if type(batch).__module__ == "numpy" else ""

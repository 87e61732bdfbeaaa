"""Images with classes: CIFAR-10, and any folder of images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchprune.data.files import read_classes
from branchprune.data.memory import InMemory, Splits
from branchprune.errors import PruneError


class CIFAR10(InMemory):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32, of 10 classes.

    It is downloaded when it is not there. Source: Krizhevsky, "Learning Multiple Layers of
    Features from Tiny Images" (2009).

    Args:
        root: Where torchvision keeps it.
        options: See `InMemory`.
    """

    name = "CIFAR-10"

    def __init__(self, root: str | Path = "data", **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root)

    def load(self) -> Splits:
        """Read the images (N, 3, 32, 32), downloaded if need be.

        Raises:
            PruneError: They are not there and cannot be downloaded.
        """
        return {"train": self._split(train=True), "test": self._split(train=False)}

    def _split(self, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets  # type: ignore[import-untyped]  # slow to import

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*align should be passed.*")  # of old pickles
                found = datasets.CIFAR10(self.root, train, download=True)
        except (OSError, RuntimeError) as error:
            raise PruneError(
                f"CIFAR-10 is not in root (={str(self.root)!r}) and cannot be downloaded "
                f"({error}); if you have its images as files in train/<class>/ and test/<class>/, "
                "use branchprune.data.ImageFolder(root)"
            ) from error
        self.classes = list(found.classes)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(found.targets)


class ImageFolder(InMemory):
    """Images of any classes in files: `root/train/<class>/` and `root/test/<class>/`.

    All must have the same size, or `image_size` be given, which makes them square. They may be
    jpg, jpeg, png, webp, bmp or ppm.

    Args:
        root: The folder of the data set.
        name: What result lines call it; None: the folder's name.
        options: See `InMemory`.
    """

    def __init__(self, root: str | Path, name: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.name = self.root.resolve().name if name is None else name

    def load(self) -> Splits:
        """Read the images.

        Raises:
            PruneError: A folder, a class or an image is not as it must be; see `read_classes`.
        """
        splits, self.classes = read_classes(self.root, self.image_size)
        return dict(splits)

"""Frames of a driving simulator for autoencoders: random crops, the clean input as target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from branchprune.data.files import check_contents, read_frames, read_images
from branchprune.data.memory import InMemory, Splits, at_least
from branchprune.errors import PruneError


class Frames(InMemory):
    """Frames of CARLA (Dosovitskiy et al., "CARLA: An Open Urban Driving Simulator", 2017).

    Any other images without classes do as well. Training inputs are random crops in [0, 1], those
    of validation and test are from the middle; targets are the inputs without noise. Validation
    frames are held out at random from the training frames, so some were taken moments before or
    after a training frame; test frames are from another folder or town.

    Args:
        root: The folder of the frames, nested in any way. Without `test_towns` it has the folders
            `train` and `test`.
        test_towns: Towns whose frames are the test split; the rest is for training. A town is any
            whole word in a path below root: "Town05" is found in `Town05_001020.webp` and in
            `Town05/1.png`, not in `Town051.png`.
        crop_size: Height and width of the inputs.
        name: What result lines call the data; None: the folder's name.
        options: See `InMemory`; `image_size` is the shorter side that frames are resized to
            before they are cropped.

    Raises:
        PruneError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        test_towns: Sequence[str] | None = None,
        crop_size: int = 128,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        at_least("crop_size", crop_size, 1)
        if isinstance(test_towns, str):
            raise PruneError(f"test_towns (={test_towns!r}) must be a list of towns")
        self.root = Path(root)
        self.crop_size: int = crop_size
        self.test_towns = None if test_towns is None else list(test_towns)
        self.name = self.root.resolve().name if name is None else name

    def load(self) -> Splits:
        """Read the frames.

        Raises:
            PruneError: A folder or a town is not there, or an image is corrupt, of another size
                than the others, smaller than the crop, in two splits, or twice in the training
                frames.
        """
        train, test = self._by_folder() if self.test_towns is None else self._by_town()
        check_contents({"train": {"": train}, "test": {"": test}})
        images = read_images(train + test, self._size(train[0]))
        height, width = images.shape[2:]
        if min(height, width) < self.crop_size:
            raise PruneError(
                f"crop_size (={self.crop_size}) is more than the size of {train[0]}, which is "
                f"{height}x{width} (height x width)"
            )
        return {"train": (images[: len(train)], None), "test": (images[len(train) :], None)}

    def _by_folder(self) -> tuple[list[Path], list[Path]]:
        return read_frames([self.root / "train"]), read_frames([self.root / "test"])

    def _by_town(self) -> tuple[list[Path], list[Path]]:
        towns = self.test_towns or []
        paths = read_frames([self.root])
        held_out: set[Path] = set()
        for town in towns:
            word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(town)}(?![A-Za-z0-9])")
            found = {path for path in paths if word.search(str(path.relative_to(self.root)))}
            if not found:
                raise PruneError(f"test_towns (={towns}): no path below {self.root} has {town!r}")
            held_out |= found
        train = [path for path in paths if path not in held_out]
        if not train or not held_out:
            none = "training" if held_out else "test"
            raise PruneError(f"test_towns (={towns}) leaves no {none} frames in {self.root}")
        return train, [path for path in paths if path in held_out]

    def _size(self, first: Path) -> tuple[int, int] | None:
        """Return the size of frames whose shorter side is `image_size`, shaped as the first is."""
        if self.image_size is None:
            return None
        height, width = read_images([first]).shape[2:]
        scale = self.image_size / min(height, width)
        return round(height * scale), round(width * scale)

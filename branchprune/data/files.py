"""Reading images from disk into memory."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from branchprune.data.image_cache import cached
from branchprune.errors import PruneError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
"""What Pillow may take a file for, whatever its name: others may start programs."""
UNREAD = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".tif", ".tiff")
"""Of images that are left out, which is said."""
MOST_PIXELS = 2**26
Size = tuple[int, int]
ClassSplit = tuple[Tensor, Tensor]


def class_folders(root: Path, split: str) -> dict[str, list[Path]]:
    """Return the images of every class of a split, from `root/<split>/<class>/`.

    Classes and images are sorted, and images may be in folders within the class. Hidden files and
    folders are left out.

    Args:
        root: The folder of the data set.
        split: "train" or "test".

    Raises:
        PruneError: The folder is not there or has no classes, or a class has no image.
    """
    folder = root / split
    _check_folder(root)
    if not folder.is_dir():
        raise PruneError(
            f"there is no folder {folder}: images belong into {root}/train/CLASS/ and "
            f"{root}/test/CLASS/"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise PruneError(f"{folder} has no folder for each class")
    return {name: read_frames([folder / name]) for name in names}


def read_classes(
    root: Path, image_size: int | None = None
) -> tuple[dict[str, ClassSplit], list[str]]:
    """Read all images of `root/train/<class>/` and `root/test/<class>/`.

    The same file in two classes is taken for a wrong label, in both splits for a leak, and so is
    one that is in the training images twice: part of them is held out for validation.

    Args:
        root: The folder of the data set.
        image_size: Height and width that images are resized to (bilinear, antialiased); None: all
            must have the same size.

    Returns:
        Images, uint8 (N, 3, H, W), and labels, int64 (N,), of "train" and "test", and the names of
        the classes by label.

    Raises:
        PruneError: A folder, a class or an image is missing, or is not as it must be; its path is
            in the message.
    """
    folders = {split: class_folders(root, split) for split in ("train", "test")}
    for split, other in (("train", "test"), ("test", "train")):
        for name in sorted(folders[other].keys() - folders[split].keys()):
            raise PruneError(f"{root / split / name} is missing: {root / other / name} is there")
    check_contents(folders)
    size = None if image_size is None else (image_size, image_size)
    paths = [path for classes in folders.values() for path in chain(*classes.values())]
    images = read_images(paths, size)
    splits: dict[str, ClassSplit] = {}
    start = 0
    for split, classes in folders.items():
        counts = torch.tensor([len(paths) for paths in classes.values()])
        labels = torch.arange(len(counts)).repeat_interleave(counts)
        splits[split] = images[start : start + len(labels)], labels
        start += len(labels)
    return splits, [*folders["train"]]


def read_frames(folders: list[Path]) -> list[Path]:
    """Return the paths of all images in some folders, however nested, sorted within each.

    Raises:
        PruneError: A folder is not there, or has no image.
    """
    return [path for folder in folders for path in _images_in(folder)]


def read_images(paths: list[Path], size: Size | None = None, crop: bool = False) -> Tensor:
    """Read images; grey ones become RGB, and opacity is left out.

    Args:
        paths: Where they are.
        size: Height and width that they are resized to (bilinear, antialiased); None: all must be
            as large as the first.
        crop: Whether they keep their proportions, and lose what is over at two opposite sides.

    Returns:
        uint8 (N, 3, H, W), in the order of the paths.

    Raises:
        PruneError: An image is empty, cut off, not readable, or of another size than the first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it will be an error
        read = partial(_read_images, paths, partial(_resized, size=size, crop=crop))
        return cached(paths, f"{size} {crop}", read)


def _resized(image: Image.Image, size: Size | None, crop: bool) -> Image.Image:
    if size is None or image.size == size[::-1]:
        return image
    if crop:
        return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def _read_images(paths: list[Path], resized: Callable[[Image.Image], Image.Image]) -> Tensor:
    Image.init()  # not safe in threads
    width, height = resized(decoded(paths[0])).size
    images = np.empty((len(paths), 3, height, width), np.uint8)

    def fill(start: int, part: list[Path]) -> None:
        for i, path in enumerate(part, start):
            image = np.asarray(resized(decoded(path)))
            if image.shape[:2] != (height, width):
                raise PruneError(
                    f"{path} is of size {_said(image.shape)}, but {paths[0]} of "
                    f"{_said((height, width))}: resize them, by image_size"
                )
            images[i] = image.transpose(2, 0, 1)

    _in_threads(fill, paths)
    return torch.from_numpy(images)


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise PruneError(f"{folder} is a file, and a folder of images is asked for")
    if not folder.is_dir():
        raise PruneError(f"there is no folder {folder}")


def _images_in(folder: Path) -> list[Path]:
    _check_folder(folder)
    found: list[Path] = []
    seen: dict[tuple[int, int], str] = {}
    unread: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        _note(place, seen)
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(SUFFIXES))
        found += [Path(place, name) for name in images if not name.startswith(".")]
        others = (name for name in names if name.lower().endswith(UNREAD))
        unread += [Path(name).suffix for name in others if not name.startswith(".")]
    if not found:
        raise PruneError(f"{folder} has no image ({', '.join(SUFFIXES)})")
    if unread:
        kinds, files = ", ".join(sorted({*unread})), "file" if len(unread) == 1 else "files"
        warnings.warn(
            f"{folder}: {len(unread)} {files} ({kinds}) are left out: of images are read "
            f"{', '.join(SUFFIXES)}",
            stacklevel=2,
        )
    return sorted(found)


def _note(place: str, seen: dict[tuple[int, int], str]) -> None:
    """Note a folder among those that were seen, by what it is on disk.

    Raises:
        PruneError: It was seen by another path, around which a link leads.
    """
    status = Path(place).stat()
    known = seen.setdefault((status.st_dev, status.st_ino), place)
    if known != place:
        raise PruneError(f"{place} is the same folder as {known}: remove the link")


def _said(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} (height x width)"


def _bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise PruneError(f"{path} is no regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PruneError(f"{path} cannot be read: {error}") from error
    if not content:
        raise PruneError(f"{path} is empty (0 bytes)")
    return content


def decoded(path: Path) -> Image.Image:
    """Read one image, as RGB.

    Raises:
        PruneError: It is empty, cut off, or not readable.
    """
    content = _bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            # Pillow clips more than 8 bits a channel to white, and warns of palettes with opacity.
            if image.mode.startswith(("I", "F")):
                raise PruneError(f"{path} has more than 8 bits a channel (mode {image.mode!r})")
            palette = image.mode == "P" and "transparency" in image.info
            return (image.convert("RGBA") if palette else image).convert("RGB")
    except PruneError:
        raise
    except Image.DecompressionBombError as error:
        raise PruneError(
            f"{path} has more than {MOST_PIXELS:,} pixels, which are not decoded: scale it down"
        ) from error
    except (UnidentifiedImageError, ImportError) as error:  # ultralytics looks for a decoder then
        raise PruneError(
            f"{path} is corrupt, or none of {', '.join(FORMATS)}, whatever its name"
        ) from error
    except Exception as error:  # a decoder may raise anything
        raise PruneError(f"{path} is corrupt: {error}") from error


def _in_threads(work: Callable[[int, list[Path]], None], paths: list[Path]) -> None:
    """Do the work on chunks of paths, given with their start; the first failure in order counts."""
    starts = range(0, len(paths), 256)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(work, starts, (paths[start : start + 256] for start in starts)):
            pass


def check_contents(folders: dict[str, dict[str, list[Path]]]) -> None:
    """Raise for the same file in two splits, in two classes, or in the training images twice.

    Args:
        folders: The paths of the images by split and class.

    Raises:
        PruneError: There is such a file; both paths are in the message.
    """
    seen: dict[bytes, tuple[str, str, Path]] = {}
    for split, classes in folders.items():
        for name, paths in classes.items():
            for path in paths:
                digest = hashlib.blake2b(_bytes(path), digest_size=16).digest()
                if digest not in seen:
                    seen[digest] = split, name, path
                    continue
                known, known_name, other = seen[digest]
                if known != split:
                    raise PruneError(f"{path} is the same file as {other}: test images leak")
                if known_name != name:
                    raise PruneError(
                        f"{path} is the same file as {other}: it cannot be both {name!r} and "
                        f"{known_name!r}"
                    )
                if split == "train":
                    raise PruneError(
                        f"{path} is the same file as {other}: one could be trained on and the "
                        "other held out for validation"
                    )

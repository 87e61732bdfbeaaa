"""Images of shapes on textured grounds, as files for object detectors: nothing is downloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from branchprune.data.memory import at_least

SHAPES = ("circle", "square", "triangle")
CORNERS = (64, 4, 3)
"""Of each shape: a circle is a polygon of many."""
MOST = 3
"""So many shapes are in an image at most."""
GAP = 2.0
"""Pixels between two shapes, at least."""
Box = tuple[float, float, float, float]


def draw_shapes(
    folder: str | Path,
    train: int = 320,
    val: int = 100,
    test: int = 200,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Draw circles, squares and triangles, with their boxes, as YOLO reads them.

    Images, PNG, are in `images/train/`, `images/val/` and `images/test/`. A text file for each in
    `labels/` holds a line for each shape: class, and centre, width and height as fractions of the
    image. An image has one to three shapes, turned and coloured at random, none over another, on a
    cloudy ground with noise; it depends on size, seed, split and its number alone.

    Args:
        folder: Where to write; it is made.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        size: Height and width in pixels.
        seed: Of all that is random.

    Returns:
        The file `data.yaml`, which names folders and classes.

    Raises:
        PruneError: A number of images is below 1, or the images are smaller than 32 pixels.
    """
    splits = {"train": train, "val": val, "test": test}
    for name, value in splits.items():
        at_least(name, value, 1)
    at_least("size", size, 32)
    folder = Path(folder).resolve()
    for stream, (split, count) in enumerate(splits.items()):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, lines = _draw(np.random.default_rng((seed, stream, number)), size)
            image.save(folder / "images" / split / f"{number:04d}.png")
            (folder / "labels" / split / f"{number:04d}.txt").write_text("\n".join(lines) + "\n")
    lines = [f"path: {folder}", *(f"{split}: images/{split}" for split in splits), "names:"]
    lines += [f"  {label}: {name}" for label, name in enumerate(SHAPES)]
    described = folder / "data.yaml"
    described.write_text("\n".join(lines) + "\n")
    return described


def _draw(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[str]]:
    """Return an image and the lines of its label file."""
    image = _ground(rng, size)
    ground = np.asarray(image, dtype=float).mean((0, 1))
    draw, lines = ImageDraw.Draw(image), []
    for label, points in _polygons(rng, size, int(rng.integers(1, MOST + 1))):
        draw.polygon([*points], fill=_colour(rng, ground))
        left, top, right, bottom = _box(points)
        numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        lines.append(" ".join([str(label), *(f"{number / size:.6f}" for number in numbers)]))
    return image, lines


def _ground(rng: np.random.Generator, size: int) -> Image.Image:
    """Return clouds of a few colours, with noise on each pixel."""
    clouds = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    noisy = pixels + rng.normal(0, 10, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, ground: np.ndarray) -> tuple[int, int, int]:
    """Return a colour that is not close to the ground's mean."""
    while True:
        colour = rng.integers(0, 256, 3)
        if np.abs(colour - ground).max() > 80:
            red, green, blue = colour.tolist()
            return red, green, blue


def _polygons(
    rng: np.random.Generator, size: int, count: int
) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    """Yield class and corners of shapes that do not touch; fewer where there is no room."""
    boxes: list[Box] = []
    for _ in range(10 * count):
        label = int(rng.integers(len(SHAPES)))
        radius = float(rng.uniform(0.15, 0.3)) * size
        x, y = rng.uniform(radius, size - 1 - radius, 2)
        turn = float(rng.uniform(0, 2 * math.pi))
        angles = [turn + 2 * math.pi * i / CORNERS[label] for i in range(CORNERS[label])]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        box = _box(points)
        if all(_apart(box, other) for other in boxes):
            boxes.append(box)
            yield label, points
        if len(boxes) == count:
            return


def _box(points: list[tuple[float, float]]) -> Box:
    """Return left, top, right and bottom of a polygon."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _apart(one: Box, other: Box) -> bool:
    """Return whether there is a gap between two boxes."""
    horizontal = max(one[0], other[0]) - min(one[2], other[2])
    vertical = max(one[1], other[1]) - min(one[3], other[3])
    return max(horizontal, vertical) > GAP

"""Drawn shapes: their boxes are where their colours are, and a seed draws them again."""

import numpy as np
import pytest
import yaml
from PIL import Image

from branchprune import PruneError
from branchprune.data import draw_shapes


def read(folder, split, number):
    pixels = np.asarray(Image.open(folder / "images" / split / f"{number:04d}.png"), dtype=int)
    text = (folder / "labels" / split / f"{number:04d}.txt").read_text()
    return pixels, [[*map(float, line.split())] for line in text.splitlines()]


def test_boxes_are_where_the_colours_are(tmp_path):
    described = yaml.safe_load(draw_shapes(tmp_path, train=30, val=2, test=1).read_text())
    assert described["names"] == {0: "circle", 1: "square", 2: "triangle"}
    seen = []
    for number in range(30):
        pixels, lines = read(tmp_path, "train", number)
        assert pixels.shape == (64, 64, 3) and 1 <= len(lines) <= 3
        for label, x, y, width, height in lines:
            colour = pixels[int(64 * y), int(64 * x)]
            rows, columns = np.nonzero((pixels == colour).all(2))
            edges = [columns.min(), rows.min(), columns.max(), rows.max()]
            box = 64 * np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            assert np.abs(box - edges).max() <= 1.5
            filled = len(rows) / (64 * width * 64 * height)
            assert label != 0 or 0.7 < filled < 0.9  # π/4 of a circle's box
            assert label != 2 or filled < 0.65
            seen.append(label)
    assert {*seen} == {0, 1, 2}


def test_an_image_depends_on_seed_split_and_number(tmp_path):
    for name, options in (("a", {}), ("b", {"train": 5}), ("c", {"seed": 1})):
        draw_shapes(tmp_path / name, **{"train": 2, "val": 2, "test": 1} | options)
    first, again, other = (read(tmp_path / name, "train", 1) for name in "abc")
    assert (first[0] == again[0]).all() and first[1] == again[1]
    assert (first[0] != other[0]).any() and (first[0] != read(tmp_path / "a", "val", 1)[0]).any()


@pytest.mark.parametrize(("option", "least"), [("train", 1), ("val", 1), ("test", 1), ("size", 32)])
def test_what_cannot_be_drawn_is_refused(tmp_path, option, least):
    with pytest.raises(PruneError, match=rf"{option} \(={least - 1}\) must be at least {least}"):
        draw_shapes(tmp_path / "none", **{option: least - 1})
    assert not (tmp_path / "none").exists()

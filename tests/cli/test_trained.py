"""How images are prepared: as the library of a model does, or as a user says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import branchprune as bp
from branchprune.cli.trained import Preparation, _of_torchvision

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def image(tmp_path: Path) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 450, 3), np.uint8)
    found = Image.fromarray(pixels)
    found.save(tmp_path / "a.png")
    return found


def test_images_of_a_library_are_prepared_as_it_evaluates(
    image: Image.Image, tmp_path: Path
) -> None:
    """ResNet-18 of torchvision: the shorter side to 256, of which the middle 224."""
    _, known = _of_torchvision("resnet18")
    found = known.but(None, None, None).read(tmp_path)
    resized = image.resize((384, 256), Image.Resampling.BILINEAR).crop((80, 16, 304, 240))
    wanted = (np.array(resized) / 255 - MEAN) / STD
    np.testing.assert_allclose(found[0].permute(1, 2, 0), wanted, atol=1e-5)


def test_what_a_user_gives_takes_its_place(image: Image.Image, tmp_path: Path) -> None:
    _, known = _of_torchvision("resnet18")
    found = known.but(100, None, [1.0, 1.0, 1.0]).read(tmp_path)
    assert torch.equal(found, bp.read_folder(tmp_path, 100, MEAN, [1.0, 1.0, 1.0]))
    grey = Preparation(None, [0.5], [1.0], known.own).read(tmp_path, grey=True)
    assert torch.equal(grey, bp.read_folder(tmp_path, None, [0.5], [1.0], grey=True))


def test_images_that_come_out_in_several_sizes_are_refused(
    image: Image.Image, tmp_path: Path
) -> None:
    image.resize((100, 100)).save(tmp_path / "b.png")
    _, known = _of_torchvision("fcn_resnet50")
    with pytest.raises(bp.PruneError, match=r"\(3, 520, 520\), \(3, 520, 780\); .* image_size"):
        known.read(tmp_path)

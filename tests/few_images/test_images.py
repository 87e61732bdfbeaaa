"""Unlabelled images: what is taken, what is refused, and how they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.few_images.images import divided
from branchprune.graph.unlabelled import gather


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_batches_of_a_loader_are_joined_and_their_labels_left() -> None:
    x = torch.randn(5, 3, 4, 4)
    loader = DataLoader(TensorDataset(x, torch.arange(5)), batch_size=2)
    for given in (x, [x[:3], x[3:]], loader, ((batch, 0) for batch in x.split(2))):
        assert torch.equal(gather(given), x)
    signals = torch.randn(12, 3, 8)
    for size in (2, 5, 12):  # and one batch of as many as an image has channels
        assert torch.equal(gather(signals.split(size)), signals)
    assert torch.equal(gather([signals[:3]]), signals[:3])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(1, 3, 4, 4), "must be at least two"),
        (torch.randint(0, 255, (4, 3, 4, 4), dtype=torch.uint8), "normalised"),
        (
            torch.full((3, 3, 4, 4), torch.nan),
            "3 of 3 hold NaN or infinity, the first is images[0]",
        ),
        ([torch.randn(2, 3, 4, 4), torch.randn(2, 3, 5, 4)], "differ in shape"),
        ([], "images is empty"),
        ([{"x": 1}], "a dict, not a tensor: give (batch['x'] for batch in images)"),
        ("pictures", "bp.read_folder('pictures', size, mean, std)"),
        ([*torch.randn(4, 3, 8, 8)], "are 4 tensors of shape (3, 8, 8): if each is one image"),
        (iter(torch.randn(4, 1, 8, 8)), "torch.stack([*images]); if each is a batch"),
        (TensorDataset(torch.randn(4, 3, 4, 4)), "DataLoader(images, batch_size=64)"),
        (np.zeros((4, 3, 4, 4)), "torch.from_numpy"),
        (3, "images (a int) must be a tensor"),
    ],
)
def test_what_is_no_set_of_images_is_refused(images: object, message: str) -> None:
    with pytest.raises(bp.PruneError) as caught:
        gather(images)
    assert message in str(caught.value)


def test_a_tenth_is_held_out_and_at_least_one() -> None:
    for count, held_out in ((2, 1), (10, 1), (40, 4)):
        x = torch.arange(count).view(-1, 1)
        known, other = divided(x, 0.1, generator())
        assert len(other) == held_out
        assert sorted(torch.cat([known, other]).flatten().tolist()) == list(range(count))


def test_a_folder_is_read_resized_and_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    (tmp_path / "a").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / ("a" if i else "") / f"{i}.png")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    found = bp.read_folder(tmp_path, None, mean, std)
    wanted = torch.tensor((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)
    assert bp.read_folder(tmp_path, 4).shape == (3, 3, 4, 4)
    grey = bp.read_folder(tmp_path, None, [0.5], [0.2], grey=True)
    shares = (pixels @ [0.299, 0.587, 0.114] / 255 - 0.5) / 0.2
    torch.testing.assert_close(grey.double(), torch.tensor(shares)[:, None], atol=1e-5, rtol=0)
    with pytest.raises(bp.PruneError, match="must be one finite number"):
        bp.read_folder(tmp_path, 4, mean, grey=True)
    with pytest.raises(bp.PruneError, match="must be three finite numbers"):
        bp.read_folder(tmp_path, 4, mean=[0.5])
    with pytest.raises(bp.PruneError, match="must be above 0"):
        bp.read_folder(tmp_path, 4, mean, std=[1.0, 0.0, 1.0])


def test_images_keep_their_proportions_and_lose_what_is_over(tmp_path: Path) -> None:
    """A tall image loses above and below, a wide one at its sides, and one that fits nothing."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    wide = np.concatenate([0 * pixels[:, :4], pixels, 255 + 0 * pixels[:, :4]], 1)
    for name, image in (("a", pixels), ("b", wide), ("c", wide.transpose(1, 0, 2))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    fits, across, down = bp.read_folder(tmp_path, 6)
    small = Image.fromarray(pixels).resize((6, 6), Image.Resampling.BILINEAR)
    assert torch.equal(fits, torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255)
    assert (across[:, :, 1:-1] - fits[:, :, 1:-1]).abs().max() < 2 / 255
    assert (down - across.transpose(1, 2)).abs().max() < 2 / 255

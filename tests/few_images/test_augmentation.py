"""Views and mixtures of images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from branchprune.few_images.augmentation import (
    MIXING,
    colours,
    crops,
    cut_mixtures,
    mixtures,
    noisy,
    shares,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_views_are_crops_of_the_image_reflected_at_its_border() -> None:
    x = torch.randn(64, 2, 16, 24)
    wide = F.pad(x, (3, 3, 2, 2), mode="reflect")
    found = crops(x, generator())
    seen = set()
    for image, border in zip(found, wide, strict=True):
        places = {
            (top, left, flip): border[:, top : top + 16, left : left + 24].flip(*[2] * flip)
            if flip
            else border[:, top : top + 16, left : left + 24]
            for top in range(5)
            for left in range(7)
            for flip in (0, 1)
        }
        seen |= {place for place, crop in places.items() if torch.equal(crop, image)}
    assert {top for top, _, _ in seen} == {*range(5)}
    assert {left for _, left, _ in seen} == {*range(7)}
    assert {flip for _, _, flip in seen} == {0, 1}
    assert len(seen) > 30


def test_mixtures_are_shares_of_two_images_drawn_from_a_beta_distribution() -> None:
    x = torch.eye(4000)
    found = mixtures(x, 0.4, generator())
    torch.testing.assert_close(found.sum(1), torch.ones(4000))
    assert ((found > 0).sum(1) <= 2).all()
    drawn = found.diagonal()
    # Of Beta(a, a) the mean is 1/2, and the variance 1/(4 (2a + 1)).
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 1 / (4 * 1.8)) < 0.01
    assert torch.equal(mixtures(x, 0.0, generator()), x)


def test_cut_mixtures_have_a_rectangle_of_another_image() -> None:
    x = torch.arange(500.0).view(-1, 1, 1, 1).expand(-1, 1, 12, 16)
    found = cut_mixtures(x, 1.0, generator())
    other = found[:, 0] != x[:, 0]
    for image, inside in zip(found[:, 0], other, strict=True):
        assert len(image.unique()) <= 2
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        for line in (rows, columns):
            assert (line.int().diff() != 0).sum() <= 2  # without a gap
    assert 0.2 < other.float().mean() < 0.5
    assert torch.equal(cut_mixtures(x, 0.0, generator()), x)


def test_either_way_is_drawn_batch_by_batch() -> None:
    x, drawn = torch.arange(8.0).view(-1, 1, 1, 1).expand(-1, 1, 6, 6), generator()
    cut = [bool((MIXING["either"](x, 1.0, drawn).frac() == 0).all()) for _ in range(40)]
    assert 10 < sum(cut) < 30


def test_colours_are_one_linear_map_an_image() -> None:
    x = torch.randn(5, 3, 8, 8)
    found = colours(x, generator())
    for before, after in zip(x, found, strict=True):
        points = torch.cat([before.flatten(1), torch.ones(1, 64)]).T
        fitted = torch.linalg.lstsq(points, after.flatten(1).T)
        assert (points @ fitted.solution - after.flatten(1).T).abs().max() < 1e-4
    assert not torch.allclose(found[0] - x[0], found[1] - x[1])


def test_noise_is_of_another_size_in_each_image() -> None:
    sizes = (noisy(torch.zeros(200, 3, 16, 16), generator())).std((1, 2, 3))
    assert sizes.min() < 0.05 < 0.45 < sizes.max() < 0.55


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_shares_of_a_small_alpha_are_nothing_or_all(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = shares(4000, 1e-3, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(before)
    ends = [float((found < 1e-3).float().mean()), float((found > 1 - 1e-3).float().mean())]
    assert min(ends) > 0.46 and sum(ends) > 0.98 and bool(found.isfinite().all())

"""A file as a module: images in the batches that it takes, outputs in the form of its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from branchprune.errors import PruneError
from branchprune.runtimes.batch import DYNAMIC, Batch
from branchprune.runtimes.in_runtime import InRuntime

IMAGES = torch.arange(10.0).view(10, 1)


@pytest.mark.parametrize(
    ("batch", "largest", "sizes"),
    [(DYNAMIC, None, [10]), (DYNAMIC, 4, [4, 4, 2]), (4, None, [4, 4, 4]), (16, None, [16])],
)
def test_images_come_in_batches_that_the_file_takes(
    batch: Batch, largest: int | None, sizes: list[int]
) -> None:
    seen: list[int] = []

    def opened(images: Any) -> Any:
        seen.append(len(images))
        return lambda: [(2 * images).numpy(), (images + 1).numpy()]

    form = {"doubled": torch.zeros(1), "others": (torch.zeros(1), None)}
    found = InRuntime(opened, form, batch, largest)(IMAGES)
    assert seen == sizes
    assert torch.equal(found["doubled"], 2 * IMAGES)
    more, nothing = found["others"]
    assert torch.equal(more, IMAGES + 1) and nothing is None


def test_a_single_output_is_a_tensor() -> None:
    found = InRuntime(lambda images: lambda: [images.numpy() - 1], torch.zeros(1))(IMAGES)
    assert isinstance(found, Tensor) and torch.equal(found, IMAGES - 1)


def test_outputs_without_the_batch_are_as_they_are_where_nothing_is_joined() -> None:
    total = InRuntime(lambda images: lambda: [images.sum().numpy()], torch.zeros(1), 10)
    assert torch.equal(total(IMAGES), torch.tensor(45.0))
    for images in (IMAGES[:4], torch.cat([IMAGES, IMAGES])):
        with pytest.raises(PruneError, match=r"shape \(\) does not begin with the batch, 10"):
            total(images)

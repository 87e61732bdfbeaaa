"""The digits: how they are split, resized and put into batches, against scikit-learn and Pillow."""

import numpy as np
import pytest
import torch
from given_images import rows
from PIL import Image
from sklearn.datasets import load_digits

from branchprune.data import Digits

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def splits(**options):
    data = Digits(**options)
    data.setup()
    return {name: dataset.tensors for name, dataset in data.splits.items()}


def test_every_class_has_its_part_of_each_split_and_no_image_is_in_two():
    found, digits = splits(), load_digits()
    held = torch.cat([images for images, _ in found.values()]).squeeze(1)
    known = torch.from_numpy(digits.images).float() / 16
    assert sorted(held.flatten(1).tolist()) == sorted(known.flatten(1).tolist())
    labels = dict(zip(map(tuple, known.flatten(1).tolist()), digits.target, strict=True))
    for split, (images, classes) in found.items():
        expected = SHARES[split] * np.bincount(digits.target)
        assert np.abs(classes.bincount().numpy() - expected).max() < 1
        given = [labels[tuple(image)] for image in images.flatten(1).tolist()]
        assert classes.tolist() == given


def test_the_split_is_that_of_its_seed():
    first, again, other = splits(split_seed=3), splits(split_seed=3), splits(split_seed=4)
    for split, (images, _) in first.items():
        assert torch.equal(images, again[split][0])
        assert rows(images) != rows(other[split][0])


def test_training_batches_are_shuffled_and_full_the_others_in_order_and_complete():
    data = Digits(batch_size=50)
    data.setup()
    train, labels = list(data.train_dataloader()), data.splits["train"].tensors[1]
    assert [len(x) for x, _ in train] == [50] * (len(labels) // 50) and len(labels) % 50
    assert torch.cat([y for _, y in train]).tolist() != labels[: 50 * len(train)].tolist()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        images, classes = (torch.cat(found) for found in zip(*loader, strict=True))
        assert torch.equal(images, data.splits[split].tensors[0])
        assert torch.equal(classes, data.splits[split].tensors[1])


@pytest.mark.parametrize("size", [4, 13])
def test_images_are_resized_and_repeated(size):
    small, large = splits()["test"][0], splits(image_size=size, channels=3)["test"][0]
    assert large.shape == (len(small), 3, size, size)
    for image, found in zip(small[:20], large, strict=False):
        resized = Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert all(np.allclose(channel, np.array(resized), atol=1e-5) for channel in found)
    assert large.min() >= 0 and large.max() <= 1

"""Random images in memory, and every crop of one, for the tests of the data modules."""

from types import SimpleNamespace

import numpy as np
import torch

from branchprune.data import InMemory

RANDOM = np.random.default_rng(0)


def images(n, height=6, width=5):
    values = RANDOM.integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(values)


class Given(InMemory):
    """Images of which each has its own class, or none a class."""

    name = "given"

    def __init__(self, n=40, labels="own", **options):
        super().__init__(**({"batch_size": 8, "eval_batch_size": 7} | options))
        self.given = {split: images(n) for split in ("train", "val", "test")}
        self.labels = torch.arange(n) if labels == "own" else labels

    def load(self):
        return {split: (x, self.labels) for split, x in self.given.items()}


class Divided(Given):
    """No validation images of its own."""

    def load(self):
        return {"train": (self.given["train"], self.labels), "test": super().load()["test"]}


def attach(data, epoch):
    device = torch.device("cpu")
    data.trainer = SimpleNamespace(
        current_epoch=epoch, strategy=SimpleNamespace(root_device=device), world_size=1
    )


def same(a, b):
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


ALL = {"crop_padding": 2, "flip": True, "noise": 0.1}


def possible(image, padding, h, w, flip):
    """Return every crop of a padded image (C, H, W), by top, left and whether it is mirrored."""
    border = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image, border)
    found = {}
    for top in range(padded.shape[1] - h + 1):
        for left in range(padded.shape[2] - w + 1):
            crop = padded[:, top : top + h, left : left + w]
            found[top, left, False] = crop
            if flip:
                found[top, left, True] = crop[:, :, ::-1]
    return found


def rows(x):
    return {tuple(row) for row in x.flatten(1).tolist()}

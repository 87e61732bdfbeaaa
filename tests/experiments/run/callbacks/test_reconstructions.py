"""Reconstructions: images from all over the validation set, the same in every epoch."""

import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from small_training import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from branchprune.experiments.run.callbacks.reconstructions import Reconstructions
from branchprune.lightning import Keys, ReconstructionTask

VALUES = torch.arange(32) / 32


class Shift(nn.Module):
    """Adds what it learns."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.shift


class Writer(DummyLogger):
    """A logger that keeps images."""

    def __init__(self):
        super().__init__()
        self.grids, self._experiment = [], self

    def add_image(self, name, grid, step):
        assert name == "reconstruction/targets_above_outputs"
        self.grids.append(grid)


def shown(task, batch_size=8, named=False, shuffle=False, count=4, epochs=1, every=1):
    """Train on images that are each one grey value, and return the grids."""
    images = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    data = TensorDataset(images, images)
    loader = DataLoader(data, batch_size, shuffle=shuffle)
    if named:
        loader = DataLoader(
            [{"image": x, "clean": y} for x, y in data], batch_size, shuffle=shuffle
        )
    writer, callback = Writer(), Reconstructions(count, every)
    run = trainer(epochs, callback, num_sanity_val_steps=2, logger=writer)
    run.fit(task, loader, loader)
    return writer.grids


def values(grid, row=0):
    """Return the grey value of each image in a row of a grid."""
    return grid[0, 2 + 18 * row + 8, 2 + 8 :: 18].tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 8, 32])
def test_images_are_spread_over_the_set(batch_size):
    [grid] = shown(ReconstructionTask(Shift(), learning_rate=1e-9), batch_size)
    found = values(grid)
    assert len(found) == 4
    for number, value in enumerate(found):  # one out of each quarter
        assert number / 4 <= value < (number + 1) / 4
    assert values(grid, row=1) == pytest.approx(found, abs=1e-3)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled.*")
def test_they_stay_the_same_while_outputs_change():
    first, last = shown(ReconstructionTask(Shift(), learning_rate=0.1), shuffle=True, epochs=2)
    assert values(first) == values(last)
    assert values(first, row=1) != values(last, row=1)


def test_batches_may_be_dictionaries():
    keys = Keys(input="image", target="clean")
    assert len(shown(ReconstructionTask(Shift(), keys=keys), named=True)) == 1


def test_few_images_are_shown_once_each():
    [grid] = shown(ReconstructionTask(Shift(), learning_rate=1e-9), batch_size=32, count=64)
    assert values(grid) == VALUES.tolist()


def test_grids_come_every_few_epochs():
    assert len(shown(ReconstructionTask(Shift(), learning_rate=0.1), epochs=3, every=2)) == 2


def test_outputs_are_cut_to_what_can_be_shown():
    model = Shift()
    torch.nn.init.constant_(model.shift, 2.0)
    [grid] = shown(ReconstructionTask(model, learning_rate=1e-9))
    assert values(grid, row=1) == [1.0] * 4 and max(values(grid)) < 1


def test_of_a_stream_the_first_batch_is_shown():
    places = Reconstructions(count=4)._places
    assert (places(0, float("inf"), 8), places(1, float("inf"), 8)) == ([1, 3, 5, 7], [])

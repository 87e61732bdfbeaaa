"""The configuration of a tiny run, with a model and data of a user's own."""

import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TINY = """
name: tiny
model: {class_path: tiny_run.Net}
data: {class_path: tiny_run.Data}
task:
  class_path: branchprune.lightning.ClassificationTask
  init_args: {learning_rate: 0.05}
dense: {epochs: 2}
prune: {blend: {levels: [0.5, 0.0], final_hold: 2}}
"""


class Net(nn.Sequential):
    """A user's own model, named by import path."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * 16, 3),
        )


class Data(LightningDataModule):
    """A user's own data module."""

    def _batches(self, seed: int) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(24, 1, 4, 4, generator=generator)
        y = (x.mean((1, 2, 3)) > 0).long()
        return DataLoader(TensorDataset(x, y), batch_size=8)

    def train_dataloader(self) -> DataLoader:
        return self._batches(0)

    def val_dataloader(self) -> DataLoader:
        return self._batches(1)

    def test_dataloader(self) -> DataLoader:
        return self._batches(2)

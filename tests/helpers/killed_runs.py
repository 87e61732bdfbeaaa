"""Runs that are killed before a step, and the comparison of what they come to."""

import csv
import json
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from branchprune.cli import main
from branchprune.lightning import ClassificationTask

CONFIG = """
name: killed
seed: 3
model: {class_path: killed_runs.Net}
data: {class_path: killed_runs.Data}
task:
  class_path: killed_runs.Killed
  init_args: {learning_rate: 0.05, cycle_epochs: 3}
dense: {epochs: 2}
prune:
  criterion: {name: random}
  blend:
    levels: [0.6, 0.3, 0.0]
    hold: {max_epochs: 2, patience: 2}
    restarts: [0.02]
    restore_best: true
    learning_rate: restart
"""


class Net(nn.Sequential):
    """A network that draws random numbers while it is trained."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(128, 3),
        )


class Data(LightningDataModule):
    """Shuffled by the global generator, as DataLoader does it."""

    def _batches(self, seed: int, size: int, shuffle: bool = False) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 1, 4, 4, generator=generator)
        y = (x.mean((1, 2, 3)) > 0).long()
        return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._batches(0, 8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._batches(1, 24)

    def test_dataloader(self) -> DataLoader:
        return self._batches(2, 24)


class Kill(Exception):
    """What stands for a kill within the process."""


class Killed(ClassificationTask):
    """Is killed before one of its training steps, counted over all stages."""

    at = -1
    steps = 0

    def training_step(self, batch, batch_idx):
        Killed.steps += 1
        if Killed.steps == Killed.at:
            raise Kill
        return super().training_step(batch, batch_idx)


def go(base: Path, name: str, *options: str, kill: int = -1, more: str = "") -> Path:
    """Run the configuration into a folder; killed before a step, or to its end."""
    Killed.at, Killed.steps = kill, 0
    config, extra = base / "config.yaml", base / "more.yaml"
    config.write_text(CONFIG)
    extra.write_text(more)
    arguments = ["run", str(config), "--output", str(base / name), *options]
    arguments += ["--config", str(extra)] if more else []
    if kill > 0:
        with pytest.raises(Kill):
            main(arguments)
    else:
        assert main(arguments) == 0
    return base / name


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def rows(path: Path) -> list[dict[str, str]]:
    """Return the table without what depends on the clock."""
    with path.open(newline="") as file:
        found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if "loader_share" not in k} for row in found]


def check_same(whole: Path, resumed: Path, stages: list[str]) -> None:
    for name in ("dense.safetensors", "small.safetensors"):
        assert same_weights(whole / name, resumed / name), name
    for stage in stages:
        assert rows(whole / stage / "metrics.csv") == rows(resumed / stage / "metrics.csv")
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, resumed)]
    for key in ("scores", "test", "epochs", "plan", "rounds"):
        assert results[0][key] == results[1][key], key
    macs = [[stage["train_macs"] for stage in r["stages"].values()] for r in results]
    assert macs[0] == macs[1] and all(macs[0])

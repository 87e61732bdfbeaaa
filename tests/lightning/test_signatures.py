"""Modules whose steps have the signatures, and batches the kinds, that Lightning allows."""

from __future__ import annotations

from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from small_training import loader, network, trainer
from torch.utils.data import DataLoader, Dataset

import branchprune as bp
from branchprune.lightning import BranchPruning

pytestmark = pytest.mark.usefixtures("without_charts")

EXAMPLE = torch.randn(2, 1, 8, 8)


class Named(Dataset[dict[str, Any]]):
    """Examples as dictionaries."""

    def __init__(self) -> None:
        self.pairs = loader().dataset

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.pairs[index]
        return {"x": x, "meta": {"target": y, "name": str(index)}}


def named() -> DataLoader[dict[str, Any]]:
    return DataLoader(Named(), batch_size=8)


def make(flavour: Any, validation: str, loaders: int = 1) -> Any:
    """Return a module that is written as a user would, with one of several signatures."""

    class Own(flavour.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.seen: list[Any] = []

        def loss(self, batch: Any) -> Any:
            if isinstance(batch, dict):
                return torch.nn.functional.cross_entropy(
                    self.net(x=batch["x"]), batch["meta"]["target"]
                )
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch: Any) -> Any:
            return self.loss(batch)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if isinstance(batch, dict):
                return batch | {"x": batch["x"] * 0.5}
            return batch[0] * 0.5, batch[1]

        def judge(self, batch: Any, *numbers: int) -> Any:
            loss = self.loss(batch)
            self.seen.append(numbers)
            self.log("val_loss", loss, batch_size=8)
            return loss

        def on_validation_epoch_start(self) -> None:
            self.ended: list[Any] = []

        def on_validation_batch_end(self, outputs: Any, *_: Any) -> None:
            self.ended.append(outputs)

        def on_validation_epoch_end(self) -> None:
            self.log("val_of_batches", torch.stack(self.ended).mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    steps: dict[str, Any] = {
        "batch": lambda self, batch: self.judge(batch),
        "batch, i": lambda self, batch, i: self.judge(batch, i),
        "*args": lambda self, *args: self.judge(*args),
        "batch, dataloader_idx=0": lambda self, batch, dataloader_idx=0: self.judge(batch),
    }
    Own.validation_step = steps[validation]
    return Own()


@pytest.mark.parametrize(
    ("flavour", "data", "validation"),
    [
        (pytorch_lightning, named, "batch"),
        (lightning.pytorch, loader, "batch"),
        (pytorch_lightning, loader, "batch, i"),
        (pytorch_lightning, loader, "*args"),
    ],
)
def test_the_branch_is_validated_as_lightning_validates_the_blend(flavour, data, validation):
    module = make(flavour, validation)
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE, recalibrate=2)
    run = trainer(2, pruning, flavour=flavour, num_sanity_val_steps=0)
    run.fit(module, data(), data())
    numbers = [(), (), ()] if validation == "batch" else [(0,), (1,), (2,)]
    assert module.seen == numbers * 4  # branch and blend, twice
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["val_loss_branch"] == pytest.approx(logged["val_loss"])  # at α = 0 they are one
    assert logged["val_of_batches_branch"] == pytest.approx(logged["val_of_batches"])
    assert pruning.collapse_error < 1e-10


def test_several_loaders():
    module = make(pytorch_lightning, "batch, dataloader_idx=0")
    seen: list[Any] = []

    def step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        seen.append((batch_idx, dataloader_idx))

    module.validation_step = step
    module.on_validation_epoch_end = module.on_validation_epoch_start = lambda: None
    module.on_validation_batch_end = lambda *_: None
    pruning = BranchPruning(bp.Schedule((0.0,)), example=EXAMPLE)
    trainer(1, pruning, num_sanity_val_steps=0).fit(module, loader(), [loader(), loader(8)])
    assert seen == [(0, 0), (1, 0), (2, 0), (0, 1)] * 2

"""Gradients of a task's loss on training data, from which a criterion may score channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor

from branchprune.errors import PruneError
from branchprune.graph.inputs import on_device


def accumulate_gradients(task: LightningModule, data: LightningDataModule, batches: int) -> None:
    """Add the gradients of a task's loss on some training batches to its parameters.

    Args:
        task: On the CPU; statistics of its norms move as in training.
        data: Its training batches are taken in the order of an epoch.
        batches: Number of batches, or all of an epoch that has fewer.

    Raises:
        PruneError: The training step returns no loss.
    """
    data.setup("fit")
    task.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.trainer. reference is not registered.*")
        for index, batch in zip(range(batches), data.train_dataloader(), strict=False):
            output = task.training_step(on_device(batch, task), index)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if not isinstance(loss, Tensor):
                kind = type(task).__name__
                raise PruneError(f"calibration: the training step of {kind} returned no loss")
            loss.backward()

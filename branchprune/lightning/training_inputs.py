"""Inputs of a network, taken from the training data."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example
from branchprune.training.batch_keys import Keys, keys_of


def find_example(trainer: Trainer, module: LightningModule) -> Example:
    """Return the module's `example_input_array`, or the first image of the training data.

    Raises:
        PruneError: There is neither.
    """
    if isinstance(module.example_input_array, Tensor | tuple | dict):
        return module.example_input_array
    missing = "example (=None) is needed: neither example_input_array nor a data module is there"
    return training_inputs(data_module(trainer, missing), 1, keys_of(module))[0][:1]


def data_module(trainer: Trainer, missing: str) -> LightningDataModule:
    """Return the data module of a training.

    Args:
        trainer: The trainer.
        missing: What the error says if there is none.

    Raises:
        PruneError: There is none.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        raise PruneError(missing)
    found: LightningDataModule = data
    return found


def training_inputs(data: LightningDataModule, batches: int, keys: Keys) -> list[Tensor]:
    """Return the images of training batches, in the order of an epoch.

    Args:
        data: The data module, set up.
        batches: Number of batches, or all of an epoch that has fewer.
        keys: What they are like.

    Returns:
        Tensors of shape (N, C, H, W).
    """
    found = islice(data.train_dataloader(), batches)
    return [keys.input_of(batch) for batch in found]


def first_inputs(trainer: Trainer, argument: str, batches: int, keys: Keys) -> list[Tensor]:
    """Return the images of as many training batches as an argument says; none for 0.

    Raises:
        PruneError: There is no data module.
    """
    if not batches:
        return []
    missing = f"{argument} (={batches}) needs a data module"
    return training_inputs(data_module(trainer, missing), batches, keys)

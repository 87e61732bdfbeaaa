"""What a criterion sees of training data: gradients of a task's loss, or classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.criteria.curvature import fisher, obd
from branchprune.criteria.discrimination import discrimination
from branchprune.criteria.selection import Criterion
from branchprune.errors import PruneError
from branchprune.graph.inputs import on_device, training_mode
from branchprune.planning.plan import Plan
from branchprune.training.batch_keys import keys_of


def accumulate_gradients(task: LightningModule, data: LightningDataModule, batches: int) -> None:
    """Add the gradients of a task's loss on some training batches to its parameters.

    Args:
        task: On the CPU; statistics of its norms move as in training.
        data: Its training batches are taken in the order of an epoch.
        batches: Number of batches, or all of an epoch that has fewer.

    Raises:
        PruneError: The training step returns no loss.
    """
    task.train()
    with _without_trainer():
        for index, batch in enumerate(_training_batches(task, data, batches)):
            _loss(task, batch, index).backward()


def criterion_of_data(
    name: str,
    task: LightningModule,
    model: nn.Module,
    planned: Plan,
    data: LightningDataModule,
    batches: int,
) -> Criterion:
    """Return a criterion that is made of training batches, by a task in evaluation mode.

    Args:
        name: "fisher", of the loss of each example alone; "obd", of that of each batch;
            "discrimination", of the classes, which are the targets of the batches.
        task: On the CPU.
        model: The model that is to be pruned, which the task trains.
        planned: The widths.
        data: See `accumulate_gradients`.
        batches: See `accumulate_gradients`.

    Raises:
        PruneError: The training step returns no loss, or the targets are no classes.
    """
    found = _training_batches(task, data, batches)
    with training_mode(task, False), _without_trainer():
        if name == "discrimination":
            keys = keys_of(task)
            pairs = [(keys.input_of(batch), keys.target_of(batch)) for batch in found]
            return discrimination(model, planned, pairs)
        if name == "obd":
            return obd(model, (_loss(task, batch, i) for i, batch in enumerate(found)))
        alone = (example for batch in found for example in _examples(batch, task))
        return fisher(model, (_loss(task, example, i) for i, example in enumerate(alone)))


def _training_batches(
    task: LightningModule, data: LightningDataModule, batches: int
) -> Iterator[Any]:
    data.setup("fit")
    for batch in islice(data.train_dataloader(), batches):
        yield on_device(batch, task)


def _examples(batch: Any, task: LightningModule) -> Iterator[Any]:
    """Yield a batch's examples, each as a batch of one."""
    for i in range(len(keys_of(task).input_of(batch))):
        yield tree_map_only(Tensor, partial(_part, i), batch)


def _part(place: int, tensor: Tensor) -> Tensor:
    return tensor[place : place + 1] if tensor.dim() else tensor


def _loss(task: LightningModule, batch: Any, index: int) -> Tensor:
    output = task.training_step(batch, index)
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        kind = type(task).__name__
        raise PruneError(f"calibration: the training step of {kind} returned no loss")
    return loss


@contextmanager
def _without_trainer() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.trainer. reference is not registered.*")
        yield

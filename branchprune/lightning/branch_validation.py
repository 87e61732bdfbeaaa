"""Validating the branch: the module's own validation with every α forced to 0, and its shares.

The blended metric says little about the branch, since the wide path can make up for a small α.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torchmetrics
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from branchprune.blending.blended import Blended
from branchprune.blending.branch_shares import branch_shares
from branchprune.graph.inputs import Example
from branchprune.lightning.ranks import means_of_ranks, summed


def validate_branch(
    trainer: Trainer,
    module: LightningModule,
    blended: Blended,
    recent: Iterable[Example] = (),
) -> dict[str, float]:
    """Run the module's validation on the branch alone.

    Whatever the module logs is collected instead, and its metric objects are left as they were.
    What `validation_step` logs of the i-th of several loaders is called `<name>/dataloader_<i>`,
    unless it is logged with `add_dataloader_idx=False`; Lightning keeps its own
    `<name>/dataloader_idx_<i>` to itself.

    Args:
        trainer: The trainer that validates.
        module: The user's module, which contains `blended`.
        blended: The blended model.
        recent: Training inputs that BatchNorm takes its statistics from.

    Returns:
        The mean of each logged value over the validation set, by name; the same on every rank.
    """
    collected = _Collected()
    with blended.branch_only(recent), _own_metrics(module), _log_into(module, collected):
        module.on_validation_epoch_start()
        loaders = _loaders(trainer)
        for index, loader in enumerate(loaders):
            collected.begin(index if len(loaders) > 1 else None)
            limit = trainer.num_val_batches[index]
            for i, batch in enumerate(
                islice(loader, None if limit == float("inf") else int(limit))
            ):
                batch = trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch, index)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=index)
                collected.batch = batch
                with trainer.precision_plugin.val_step_context():
                    _step(module, batch, i, [index] if len(loaders) > 1 else [])
        collected.begin(None)
        collected.batch = None
        module.on_validation_epoch_end()
        return collected.means()


def _step(module: LightningModule, batch: Any, number: int, loader: Sequence[int]) -> None:
    """Call the module's validation of a batch with the arguments that Lightning gives it."""
    module.on_validation_batch_start(batch, number, *loader)
    takes_number = is_param_in_hook_signature(module.validation_step, "batch_idx", min_args=2)
    outputs = module.validation_step(batch, *([number] if takes_number else []), *loader)
    module.on_validation_batch_end(outputs, batch, number, *loader)


def last_shares(trainer: Trainer, blended: Blended, recent: Sequence[Example]) -> dict[str, float]:
    """Return `branch_shares` of the last of some training inputs, the mean over all ranks.

    Args:
        trainer: The trainer that validates, which says the precision.
        blended: The blended model.
        recent: The inputs.
    """
    found: dict[str, float] = {}
    if recent:
        with trainer.precision_plugin.val_step_context():
            found = branch_shares(blended, recent[-1])
    return means_of_ranks(found)


def _loaders(trainer: Trainer) -> list[Any]:
    loaders = trainer.val_dataloaders
    if isinstance(loaders, dict):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


class _Collected:
    """What a module logs, averaged over batches by their size."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.metrics: dict[str, torchmetrics.Metric] = {}
        self.batch: Any = None
        self.loader: int | None = None

    def begin(self, loader: int | None) -> None:
        """Go on with one of several loaders, or with none; metrics of the last one are final."""
        if self.loader is not None:
            ending = f"/dataloader_{self.loader}"
            for name in [name for name in self.metrics if name.endswith(ending)]:
                self.sums[name] = float(self.metrics.pop(name).compute()), 1
        self.loader = loader

    def log(
        self,
        name: str,
        value: Any,
        *_: Any,
        batch_size: int | None = None,
        add_dataloader_idx: bool = True,
        **__: Any,
    ) -> None:
        if self.loader is not None and add_dataloader_idx:
            name = f"{name}/dataloader_{self.loader}"
        if isinstance(value, torchmetrics.Metric):
            self.metrics[name] = value
            return
        weight = batch_size or (1 if self.batch is None else extract_batch_size(self.batch))
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + float(value) * weight, count + weight)

    def means(self) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in summed(self.sums).items()}
        return means | {name: float(metric.compute()) for name, metric in self.metrics.items()}


@contextmanager
def _log_into(module: LightningModule, collected: _Collected) -> Iterator[None]:
    vars(module)["log"] = collected.log
    try:
        yield
    finally:
        del vars(module)["log"]


@contextmanager
def _own_metrics(module: nn.Module) -> Iterator[None]:
    """Swap children that hold torchmetrics for copies."""
    originals = {
        name: child
        for name, child in module.named_children()
        if any(isinstance(m, torchmetrics.Metric) for m in child.modules())
        and next(child.parameters(), None) is None
    }
    for name, child in originals.items():
        module._modules[name] = copy.deepcopy(child)
        for metric in module._modules[name].modules():  # type: ignore[union-attr]
            if isinstance(metric, torchmetrics.Metric):
                metric.reset()
    try:
        yield
    finally:
        module._modules.update(originals)

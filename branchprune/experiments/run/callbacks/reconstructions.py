"""Reconstructions in TensorBoard: the same images, epoch after epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import make_grid  # type: ignore[import-untyped]

from branchprune.errors import PruneError
from branchprune.training.batch_keys import Keys, keys_of


class Reconstructions(Callback):
    """Show validation images above what the network makes of them.

    They are spread evenly over the first validation set, and stay the same. The callback does
    nothing for a task whose targets or outputs are no images of the size of its inputs.

    Args:
        count: Number of images.
        every: Epochs from one grid to the next.
    """

    def __init__(self, count: int = 6, every: int = 5) -> None:
        self.count, self.every = count, every
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.chosen = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Choose images, in the first validation."""
        if self.chosen or trainer.sanity_checking or dataloader_idx:
            return
        pair = _images(batch, keys_of(pl_module))
        if pair is not None:
            batches = trainer.num_val_batches[0]
            for index in self._places(batch_idx, batches, len(pair[0])):
                self.pairs.append((pair[0][index].clone(), pair[1][index].clone()))

    def _places(self, number: int, batches: float, size: int) -> list[int]:
        """Return which examples of a batch are shown."""
        batches = batches if math.isfinite(batches) else 1  # of a stream, the first
        spread = ((i + 0.5) / self.count * batches for i in range(self.count))
        return sorted({int((at - number) * size) for at in spread if number <= at < number + 1})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show them, with what the network makes of them now."""
        if trainer.sanity_checking:
            return
        self.chosen = True
        if not self.pairs or trainer.current_epoch % self.every:
            return
        images, targets = (torch.stack(part) for part in zip(*self.pairs, strict=True))
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            made = pl_module(images)
        if not isinstance(made, Tensor) or made.shape != targets.shape:
            return
        both = torch.cat([targets.float(), made.float().clamp(0, 1)])
        grid = make_grid(both, nrow=len(images))
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_image"):
                writer.add_image("reconstruction/targets_above_outputs", grid, trainer.global_step)


def _images(batch: Any, keys: Keys) -> tuple[Tensor, Tensor] | None:
    """Return inputs and targets, if both are images of one size."""
    try:
        images, targets = keys.input_of(batch), keys.target_of(batch)
    except PruneError:
        return None
    alike = images.dim() == 4 and images.shape == targets.shape and images.shape[1] in (1, 3)
    return (images, targets) if alike else None

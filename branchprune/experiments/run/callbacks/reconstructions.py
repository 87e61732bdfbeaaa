"""Reconstructions in TensorBoard: the same images, epoch after epoch."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import make_grid  # type: ignore[import-untyped]


class Reconstructions(Callback):
    """Show the first validation images above what the network makes of them.

    It does nothing for a task whose targets are no images of the size of its inputs.

    Args:
        count: Number of images.
        every: Epochs from one grid to the next.
    """

    def __init__(self, count: int = 6, every: int = 5) -> None:
        self.count, self.every = count, every
        self.pair: tuple[Tensor, Tensor] | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images."""
        if batch_idx or dataloader_idx or not _is_reconstruction(batch):
            return
        images, targets = batch
        self.pair = images[: self.count], targets[: self.count]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show them, with what the network makes of them now."""
        pair, self.pair = self.pair, None
        if pair is None or trainer.sanity_checking or trainer.current_epoch % self.every:
            return
        images, targets = pair
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            made = pl_module(images).float().clamp(0, 1)
        grid = make_grid(torch.cat([targets.float(), made]), nrow=len(images))
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_image"):
                writer.add_image("reconstruction/targets_above_outputs", grid, trainer.global_step)


def _is_reconstruction(batch: Any) -> bool:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        return False
    if not all(isinstance(part, Tensor) for part in batch):
        return False
    images, targets = batch
    return images.dim() == 4 and images.shape == targets.shape and images.shape[1] in (1, 3)

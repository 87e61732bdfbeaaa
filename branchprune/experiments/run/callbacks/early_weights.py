"""The weights that a model had early in its training, for those who rewind to them."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from branchprune.artifacts.serialization import save
from branchprune.graph.inputs import copied

EARLY = "early.safetensors"


class EarlyWeights(Callback):
    """Write a model when an epoch ends.

    Args:
        model: The model that is trained.
        epochs: After how many epochs; 0: not at all.
        path: The file.
    """

    def __init__(self, model: nn.Module, epochs: int, path: Path) -> None:
        self.model, self.epochs, self.path = model, epochs, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, if it is that epoch."""
        if trainer.current_epoch + 1 == self.epochs and trainer.is_global_zero:
            save(copied(self.model).cpu(), self.path)

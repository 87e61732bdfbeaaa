"""The weights that a model had early in its training, for those who rewind to them."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from branchprune.artifacts.serialization import save
from branchprune.experiments.run.settings import RunSettings
from branchprune.graph.inputs import copied

EARLY = "early"
"""What asks for them."""
EARLY_FILE = "early.safetensors"
PART = 0.1
"""Of the training, after which weights are early: enough to be past the noise of its start, as the
late resetting of Frankle et al. ("Stabilizing the lottery ticket hypothesis", 2019)."""


def early_file(settings: RunSettings) -> Path:
    """Return where the early weights of the dense model are, be it that of another run."""
    dense = settings.dense
    if dense.checkpoint is None or dense.epochs:
        return settings.output / EARLY_FILE
    return Path(dense.checkpoint).parent / EARLY_FILE


class EarlyWeights(Callback):
    """Write a model after a tenth of its training, which is at least an epoch.

    Args:
        model: The model that is trained.
        epochs: Those of the whole training.
        path: The file.
    """

    def __init__(self, model: nn.Module, epochs: int, path: Path) -> None:
        self.model, self.path = model, path
        self.epochs = max(1, round(PART * epochs))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, if it is that epoch."""
        if trainer.current_epoch + 1 == self.epochs and trainer.is_global_zero:
            save(copied(self.model).cpu(), self.path)

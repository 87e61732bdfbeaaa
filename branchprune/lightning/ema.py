"""An exponential moving average of the weights, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError


class WeightAverage(EMAWeightAveraging):
    """Lightning's average of the weights, for networks that may be blended.

    The average takes its place before the branch alone is validated; α itself is not averaged.
    Give it to the trainer behind `BranchPruning`, which has to attach the branches first.

    Args:
        decay: Share of the average that a step keeps, in (0, 1).

    Raises:
        PruneError: `decay` is not in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise PruneError(f"average (={decay}) must be in (0, 1)")
        super().__init__(decay=decay)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the average where the weights will be."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights."""
        with _keeping_alphas(pl_module):
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the average is there already."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the average stays until all is validated."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        with _keeping_alphas(pl_module):
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the average."""
        with _keeping_alphas(pl_module):
            super().on_train_end(trainer, pl_module)


def averaging(decay: float) -> list[WeightAverage]:
    """Return the callbacks that average with a decay; none if it is 0."""
    return [WeightAverage(decay)] if decay else []


@contextmanager
def _keeping_alphas(module: LightningModule) -> Iterator[None]:
    """Give blended models back the α that they had, after a `with` block: it is not averaged."""
    before = [(m, m.alpha) for m in module.modules() if isinstance(m, Blended)]
    yield
    for blended, alpha in before:
        blended.alpha = alpha

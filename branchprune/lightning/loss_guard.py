"""A training whose loss becomes NaN is stopped; its learning rate is logged."""

from __future__ import annotations

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from branchprune.errors import Failed


class LossGuard(Callback):
    """Log the learning rate each epoch as "lr"; stop at a loss that is NaN or infinite.

    Raises:
        PruneError: The loss is not a number: the step is named, and the weights are as they were
            before it.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the learning rate."""
        if trainer.optimizers:
            pl_module.log("lr", float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Check the loss."""
        if not torch.isfinite(loss.detach()).all():
            raise Failed(
                f"the loss is {loss.detach().item()} at step {trainer.global_step} "
                f"(epoch {trainer.current_epoch}){self.where()}"
            )

    def where(self) -> str:
        """Say more of where the training is."""
        return ""

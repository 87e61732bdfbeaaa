"""Stopping a training before a loss that is not a number spoils the weights."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from branchprune.errors import PruneError


class FiniteLoss(Callback):
    """Raise a `PruneError` at the first loss that is NaN or infinite, before the weights change."""

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Check the loss."""
        check_finite(trainer, loss)


def check_finite(trainer: Trainer, loss: Tensor, alpha: Any = None) -> None:
    """Raise if a loss is NaN or infinite, naming the step and α."""
    if not torch.isfinite(loss.detach()).all():
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch})"
        raise PruneError(
            f"the loss is {loss.detach().item()} at {where}"
            + ("" if alpha is None else f", alpha = {alpha}")
        )

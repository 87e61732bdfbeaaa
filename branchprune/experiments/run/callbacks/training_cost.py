"""What a training costs: multiply-adds, and the share of time that waits for data."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from branchprune.graph.macs_counter import MacsCounter


class TrainingCost(Callback):
    """Log "cost/train_macs" (so far, forward and backward) and "cost/loader_share" every epoch.

    The multiply-adds of convolutions and matrix products are counted in the first step of an
    epoch, which stands for the others. So what is drawn for each step is an estimate, and so is a
    teacher that remembers, where it looks at what full batches left out before.

    Attributes:
        macs: Multiply-adds of the training so far.
        seconds: Seconds of its training batches, with their loading and without validation.
        waited: Seconds of those in which the next batch was waited for.
    """

    def __init__(self) -> None:
        self.macs, self.seconds, self.waited = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        self.since, self.before = time.perf_counter(), (self.seconds, self.waited)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the batch took to come; count in the first step."""
        self._lap(waiting=True)
        if batch_idx == 0:
            self.counter = MacsCounter()
            self.counter.__enter__()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the step."""
        if batch_idx == 0:
            self.counter.__exit__(None, None, None)
            self.step_macs = self.counter.macs
        self.macs += self.step_macs
        self._lap(waiting=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out a validation between two batches."""
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        seconds, waited = self.seconds - self.before[0], self.waited - self.before[1]
        pl_module.log("cost/train_macs", float(self.macs))
        pl_module.log("cost/loader_share", waited / seconds if seconds else 0.0)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop counting."""
        counter = self.__dict__.pop("counter", None)
        if counter is not None and counter.mode is not None:
            counter.__exit__(None, None, None)

    def _lap(self, waiting: bool) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.waited += now - self.since if waiting else 0.0
        self.since = now

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return {"macs": self.macs, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self.macs, self.seconds = state_dict["macs"], state_dict["seconds"]
        self.waited = state_dict["waited"]

"""Starting the learning rate of a training anew."""

from __future__ import annotations

import copy

from pytorch_lightning import Trainer


class LearningRates:
    """The learning rates and schedulers of a trainer as they are when this is made.

    Args:
        trainer: A trainer that has set up its optimizers.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.optimizers = trainer.optimizers
        self.rates = [
            [copy.deepcopy(group["lr"]) for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        self.schedulers = [
            (config.scheduler, copy.deepcopy(config.scheduler.state_dict()))
            for config in trainer.lr_scheduler_configs
        ]

    def restart(self, rate: float | None = None) -> None:
        """Put them back to where they were.

        Args:
            rate: Learning rate of the first parameter group, with which all others are scaled;
                None: what it was.
        """
        scale = 1.0 if rate is None else rate / float(self.rates[0][0])
        for scheduler, state in self.schedulers:
            scheduler.load_state_dict(copy.deepcopy(state))
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [scale * base for base in scheduler.base_lrs]
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            # The groups are those of now: a checkpoint that was loaded has replaced them.
            for group, start in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = copy.deepcopy(start) * scale

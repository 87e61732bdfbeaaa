"""Starting the learning rate of a training anew."""

from __future__ import annotations

import copy
from typing import Any

from pytorch_lightning import Trainer


def _scale(scheduler: Any, scale: float) -> None:
    """Scale the rates that a scheduler, and those it is made of, counts from."""
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [scale * base for base in scheduler.base_lrs]
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, scale)


def _cycle(group: dict[str, Any]) -> dict[str, float]:
    """Return the rates between which a cycle moves that of a parameter group; {}: no cycle does."""
    names = ("initial_lr", "max_lr", "min_lr")
    return {name: group[name] for name in names if name in group} if "max_lr" in group else {}


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
        self.cycles = [[_cycle(group) for group in opt.param_groups] for opt in self.optimizers]
        first = self.optimizers[0].param_groups[0] if self.optimizers else {"lr": 0.0}
        started = first.get("initial_lr", first["lr"])  # a warm-up has lowered the other
        self.base = float(first.get("max_lr", started))
        self.schedulers = [
            (config.scheduler, copy.deepcopy(config.scheduler.state_dict()))
            for config in trainer.lr_scheduler_configs
        ]

    def restart(self, rate: float | None = None) -> None:
        """Put them back to where they were.

        Args:
            rate: Learning rate that the first parameter group is given before any warm-up, or at
                the top of a cycle, and with which all others are scaled; None: what it was.
        """
        scale = 1.0 if rate is None else rate / self.base
        for scheduler, state in self.schedulers:
            scheduler.load_state_dict(copy.deepcopy(state))
            _scale(scheduler, scale)
        for optimizer, rates, cycles in zip(self.optimizers, self.rates, self.cycles, strict=True):
            # The groups are those of now: a checkpoint that was loaded has replaced them.
            for group, start, cycle in zip(optimizer.param_groups, rates, cycles, strict=True):
                group["lr"] = start * scale
                group.update({name: value * scale for name, value in cycle.items()})

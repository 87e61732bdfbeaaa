"""Training of the small model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from branchprune.errors import PruneError, whole
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.shrinking import at_widths
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import train_student
from branchprune.lightning.ema import averaging
from branchprune.planning.plan import Plan


@dataclass
class FinetuneConfig:
    """Train the small model.

    Args:
        epochs: Number of epochs.
        fresh: Start from new random weights: a narrow model from scratch, the control of all.
        average: Decay of an exponential moving average of the weights over the steps, which is what
            is validated and kept; 0: none.
    """

    epochs: int = 10
    fresh: bool = False
    average: float = 0.0

    def __post_init__(self) -> None:
        whole("finetune.epochs", self.epochs)
        averaging(self.average)  # finds what is wrong

    def epochs_to_train(self, dense: nn.Module, planned: Plan) -> list[Epoch]:
        """Return one `Epoch` per training epoch, to count its cost: of a small model."""
        return [Epoch(planned, partial(at_widths, dense, planned))] * self.epochs


def finetune(
    config: FinetuneConfig, stage: str, dense: nn.Module, small: nn.Module, stages: Stages
) -> nn.Module:
    """Return a small model trained, or what an earlier run made of it.

    Args:
        config: How long, and from where.
        stage: Name of the stage.
        dense: The trained model, a teacher.
        small: The small model; it is changed.
        stages: Where to train.
    """
    if config.fresh:
        small.apply(reset)
    average = averaging(config.average)
    return train_student(stages, f"{stage}/small", dense, small, config.epochs, *average)


def reset(module: nn.Module) -> None:
    """Give a module, without its children, new random weights.

    Raises:
        PruneError: It has parameters, and no `reset_parameters` that would do it.
    """
    again = getattr(module, "reset_parameters", None)
    if again is not None:
        again()
    elif next(module.parameters(recurse=False), None) is not None:
        kind = type(module).__name__
        raise PruneError(f"finetune.fresh: {kind} has parameters and no reset_parameters()")

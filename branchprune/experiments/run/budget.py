"""How long the last stage of a pruning may be, so that all of it costs as much as allowed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from branchprune.errors import PruneError
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import student_task
from branchprune.training.task import Task


@dataclass
class CostConfig:
    """Limit what all of the pruning may cost, by one of two.

    The last stage takes what the others leave: the fine-tuning, if there is one, else α = 0.

    Args:
        epochs: Epochs of all stages together.
        train_macs: Multiply-adds of the training, forward and backward.
    """

    epochs: int | None = None
    train_macs: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.train_macs) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise PruneError(
                f"cost must have one positive number, epochs (={self.epochs}) or "
                f"train_macs (={self.train_macs})"
            )


@dataclass(frozen=True)
class Epoch:
    """What an epoch trains.

    Attributes:
        kind: Equal for epochs that cost the same.
        model: Makes the model that is trained.
    """

    kind: Hashable
    model: Callable[[], nn.Module]


def longest_last_stage(
    config: CostConfig,
    stages_with: Callable[[int], Sequence[Sequence[Epoch]]],
    dense: nn.Module,
    stages: Stages,
) -> int:
    """Return how many epochs the last stage may have.

    What an epoch costs is counted in one training step of each kind; what a teacher that remembers
    looks at later, because the first epochs left it out to have full batches, is not in it.

    Args:
        config: What all of the pruning may cost.
        stages_with: The epochs of each stage, the last of which has so many.
        dense: The trained model.
        stages: Where to train.

    Raises:
        PruneError: The stages before use it up.
    """
    limit, cost = config.train_macs, _Counter(dense, stages).cost
    if config.epochs is not None:
        limit, cost = config.epochs, _one
    assert limit is not None

    def total(epochs: int) -> float:
        return sum(cost(epoch, i) for stage in stages_with(epochs) for i, epoch in enumerate(stage))

    if total(1) > limit:
        raise PruneError(
            f"cost (={limit:.4g}) is used up before the last stage ends: with one epoch of that, "
            f"the pruning costs {total(1):.4g}"
        )
    high = 2
    while total(high) <= limit:
        high *= 2
    return bisect_right(range(high), limit, lo=1, key=total) - 1


def _one(epoch: Epoch, before: int) -> float:
    return 1.0


class _Counter:
    """Counts the multiply-adds of an epoch, once for every kind of epoch."""

    def __init__(self, dense: nn.Module, stages: Stages) -> None:
        self.dense, self.stages = dense, stages
        self.known: dict[Hashable, tuple[int, float, float]] = {}

    def cost(self, epoch: Epoch, before: int) -> float:
        """Return the cost of an epoch, before which the stage had so many others."""
        if epoch.kind not in self.known:
            make = self.stages.config.prune_task
            task = student_task(make, self.dense, epoch.model())
            looking = later = float(self.stages.epoch_macs(task))
            memory = task.teacher.memory if isinstance(task, Task) and task.teacher else None
            looks = 0
            if memory is not None:
                looks = memory.looks
                memory.close()
                later = float(self.stages.epoch_macs(task))
            self.known[epoch.kind] = looks, looking, later
        looks, looking, later = self.known[epoch.kind]
        return looking if before < looks else later

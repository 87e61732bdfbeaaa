"""How long the last stage of a pruning may be, so that all of it costs as much as allowed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from branchprune.blending.attach import attach
from branchprune.blending.schedules import Plateau
from branchprune.collapsing.collapse import collapse
from branchprune.errors import PruneError
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.settings import BudgetConfig, PruneConfig
from branchprune.experiments.run.stages import Stages, student_task
from branchprune.graph.inputs import copied
from branchprune.lightning.freezing import originals_learn
from branchprune.planning.plan import Plan
from branchprune.training.task import Task

What = float | dict[str, float] | Literal["sparsify"] | Plan
"""What an epoch trains: a blended model at an α, the wide one, or the small one of a plan."""


def within_budget(
    config: RunConfig,
    budget: BudgetConfig,
    dense: nn.Module,
    plans: Sequence[Plan],
    stages: Stages,
) -> RunConfig:
    """Return the configuration with a last stage as long as the budget allows.

    That is the fine-tuning if there is one, else what α = 0 is held. What an epoch costs is
    counted in one training step of each kind; what a teacher that remembers looks at later, because
    the first epochs left it out to have full batches, is not in it.

    Args:
        config: The configuration of the run.
        budget: What all of the pruning may cost.
        dense: The trained model.
        plans: What will have been removed from it after each round; one without rounds.
        stages: Where to train.

    Raises:
        PruneError: The stages before use it up, or how long they are depends on a metric.
    """
    limit, cost = budget.train_macs, _Counter(config, dense, plans[-1], stages).cost
    if budget.epochs is not None:
        limit, cost = budget.epochs, _one
    assert limit is not None

    def total(epochs: int) -> float:
        return sum(
            cost(what, i)
            for stage in _stages(config, plans, epochs)
            for i, what in enumerate(stage)
        )

    if total(1) > limit:
        raise PruneError(
            f"budget (={limit:.4g}) is used up before the last stage ends: with one epoch of that, "
            f"the pruning costs {total(1):.4g}"
        )
    high = 2
    while total(high) <= limit:
        high *= 2
    epochs = bisect_right(range(high), limit, lo=1, key=total) - 1
    return replace(config, prune=_with_last(config.prune, epochs))


def _one(what: What, before: int) -> float:
    return 1.0


def _stages(config: RunConfig, plans: Sequence[Plan], epochs: int) -> list[list[What]]:
    """Return what each epoch of each stage trains, the last stage having so many epochs."""
    settings = config.prune
    stages: list[list[What]] = [
        ["sparsify"] * (settings.sparsify.epochs if settings.sparsify else 0)
    ]
    if settings.levels is not None:
        if any(isinstance(hold, Plateau) for hold in (settings.hold, settings.final_hold)):
            raise PruneError(f"budget: hold (={settings.hold}) must be a number of epochs")
        now = settings if settings.finetune else _with_last(settings, epochs)
        stages.append([*now.schedule(settings.direction(config.metric))])
    if settings.finetune:
        for plan in plans:
            stages.append([plan] * epochs)
        return stages
    if settings.levels is None:
        raise PruneError("budget: nothing is trained: set finetune, or levels")
    return stages


def _with_last(settings: PruneConfig, epochs: int) -> PruneConfig:
    if settings.finetune:
        return replace(settings, finetune=replace(settings.finetune, epochs=epochs))
    return replace(settings, final_hold=epochs)


class _Counter:
    """Counts the multiply-adds of an epoch, once for every kind of epoch."""

    def __init__(self, config: RunConfig, dense: nn.Module, planned: Plan, stages: Stages) -> None:
        self.config, self.dense, self.planned, self.stages = config, dense, planned, stages
        self.known: dict[Any, tuple[int, float, float]] = {}

    def cost(self, what: What, before: int) -> float:
        """Return the cost of an epoch, before which the stage had so many others."""
        key = _kind(what), self._is_frozen(what)
        if key not in self.known:
            task = student_task(self.config.prune_task, self.dense, self._model(what))
            looking = later = float(self.stages.epoch_macs(task))
            memory = task.teacher.memory if isinstance(task, Task) and task.teacher else None
            looks = 0
            if memory is not None:
                looks = memory.looks
                memory.close()
                later = float(self.stages.epoch_macs(task))
            self.known[key] = looks, looking, later
        looks, looking, later = self.known[key]
        return looking if before < looks else later

    def _model(self, what: What) -> nn.Module:
        if what == "sparsify":
            return copied(self.dense)
        if isinstance(what, Plan):
            blended = attach(self.dense, what)
            blended.alpha = 0.0
            return collapse(blended)
        settings = self.config.prune
        blended = attach(
            self.dense, self.planned, mixing=settings.mixing, matching=settings.matching
        )
        blended.alpha = what
        if self._is_frozen(what):
            blended.model.requires_grad_(False)
        return blended

    def _is_frozen(self, what: What) -> bool:
        """Return whether the original layers do not learn."""
        if not isinstance(what, float | dict):
            return False
        alphas = what.values() if isinstance(what, dict) else [what]
        return not originals_learn(self.config.prune.thaw_at, alphas)


def _kind(what: What) -> Any:
    """Return what epochs have in common that cost the same: α matters only where it is 0 or 1."""
    if isinstance(what, dict):
        return tuple((name, _kind(alpha)) for name, alpha in what.items())
    return 0.5 if isinstance(what, float) and 0 < what < 1 else what

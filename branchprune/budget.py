"""How long the last stage of a pruning may be, so that all of it costs as much as allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from branchprune.branches import attach
from branchprune.calls import copied
from branchprune.collapsing import collapse
from branchprune.config import RunConfig
from branchprune.errors import PruneError
from branchprune.planning import Plan
from branchprune.schedules import Plateau
from branchprune.settings import BudgetConfig, PruneConfig
from branchprune.stages import Stages, student_task

Alpha = float | dict[str, float]


def within_budget(
    config: RunConfig, budget: BudgetConfig, dense: nn.Module, planned: Plan, stages: Stages
) -> RunConfig:
    """Return the configuration with a last stage as long as the budget allows.

    That is the fine-tuning if there is one, else what α = 0 is held. What an epoch costs is
    counted in one training step of each kind.

    Args:
        config: The configuration of the run.
        budget: What all of the pruning may cost.
        dense: The trained model.
        planned: What will be removed.
        stages: Where to train.

    Raises:
        PruneError: The stages before use it up, or how long they are depends on a metric.
    """
    if budget.epochs is not None:
        total, cost = float(budget.epochs), _one
    else:
        assert budget.train_macs is not None
        total, cost = budget.train_macs, _Counter(config, dense, planned, stages).cost
    before, last = _epochs(config)
    spent = sum(cost(what) for what in before)
    epochs = int((total - spent) // sum(cost(what) for what in last))
    if epochs < 1:
        raise PruneError(
            f"budget (={total:.4g}) is used up before the last stage, by {len(before)} epochs "
            f"(={spent:.4g})"
        )
    return replace(config, prune=_with_last(config.prune, epochs))


def _one(what: Alpha | str) -> float:
    return 1.0


def _epochs(config: RunConfig) -> tuple[list[Alpha | str], list[Alpha | str]]:
    """Return what happens in each epoch before the last stage, and in one epoch of the latter."""
    settings = config.prune
    before: list[Alpha | str] = ["sparsify"] * (
        settings.sparsify.epochs if settings.sparsify else 0
    )
    if settings.levels is not None:
        if any(isinstance(hold, Plateau) for hold in (settings.hold, settings.final_hold)):
            raise PruneError(f"budget: hold (={settings.hold}) must be a number of epochs")
        once = settings if settings.finetune else replace(settings, final_hold=1)
        before += list(once.schedule(settings.direction(config.metric)))
    if settings.finetune:
        return before, ["finetune"]
    if settings.levels is None:
        raise PruneError("budget: nothing is trained: set finetune, or levels")
    number = 1 + len(settings.restarts)
    return before[:-number], before[-number:]


def _with_last(settings: PruneConfig, epochs: int) -> PruneConfig:
    if settings.finetune:
        return replace(settings, finetune=replace(settings.finetune, epochs=epochs))
    return replace(settings, final_hold=epochs)


class _Counter:
    """Counts the multiply-adds of an epoch, once for every kind of epoch."""

    def __init__(self, config: RunConfig, dense: nn.Module, planned: Plan, stages: Stages) -> None:
        self.config, self.dense, self.planned, self.stages = config, dense, planned, stages
        self.known: dict[tuple[float, ...] | str, float] = {}

    def cost(self, what: Alpha | str) -> float:
        """Return the cost of an epoch at an α, of "sparsify" or of "finetune"."""
        if what == "sparsify":
            return self._count(what, lambda: copied(self.dense))
        blended = attach(self.dense, self.planned)
        blended.alpha = 0.0 if isinstance(what, str) else what
        if what == "finetune":
            return self._count(what, lambda: collapse(blended))
        state = tuple(a if a in (0.0, 1.0) else 0.5 for a in blended.alpha.values())
        return self._count(state, lambda: blended)

    def _count(self, key: tuple[float, ...] | str, make: Callable[[], nn.Module]) -> float:
        if key not in self.known:
            task = student_task(self.config.prune_task, self.dense, make())
            self.known[key] = float(self.stages.epoch_macs(task))
        return self.known[key]

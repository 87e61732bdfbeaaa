"""What turns a dense model into a small one: blending, or rounds of removal and fine-tuning."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from branchprune.artifact import save
from branchprune.branches import Init, attach
from branchprune.checkpoints import load_weights
from branchprune.collapsing import collapse_with_error
from branchprune.config import RunConfig, TaskFactory
from branchprune.errors import PruneError
from branchprune.lightning import BranchPruning, Vitals
from branchprune.planning import Plan, plan
from branchprune.schedules import Schedule
from branchprune.settings import RoundsConfig
from branchprune.stages import Stages
from branchprune.verification import own_dtype_error


@dataclass
class Pruned:
    """What a method made of a dense model.

    Attributes:
        small: The small model.
        plan: From the dense to the small model.
        collapse_error: Relative error of the collapse in float64, the largest of all rounds.
        own_dtype_error: The same in the model's own dtype.
        scores: Validation scores on the way, by name.
        rounds: For each round its score, what is left, and whether it is kept, if there are rounds.
        trainer: The trainer of the last stage.
    """

    small: nn.Module
    plan: Plan
    collapse_error: float
    own_dtype_error: float
    scores: dict[str, float]
    trainer: Trainer | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)


def student_task(make: TaskFactory, dense: nn.Module, small: nn.Module) -> LightningModule:
    """Return a task that trains a small model, and was made with the dense one: a teacher.

    Raises:
        PruneError: The task does not hold the model that it is made with.
    """
    task = make(dense)
    places = [
        name for name, module in task.named_modules(remove_duplicate=False) if module is dense
    ]
    if not places:
        raise PruneError(f"task (={type(task).__name__}) must hold the model that it is given")
    for name in places:
        task.set_submodule(name, small)
    return task


class Method(Protocol):
    """A way to prune."""

    def check(self) -> Plan:
        """Find every mistake that can be found before training, and return the plan."""

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Prune a trained model, whose validation score is known."""


def choose_method(config: RunConfig, example: Tensor) -> Method:
    """Return the method that a configuration asks for."""
    if config.prune.rounds is not None:
        return Rounds(config, config.prune.rounds, example)
    return Blending(config, example)


class Blending:
    """α-blended branches, collapsed at the end.

    Args:
        config: The configuration of the run.
        example: Input of one example.
    """

    stage = "prune"

    def __init__(self, config: RunConfig, example: Tensor) -> None:
        self.config, self.example = config, example
        settings, mode = config.prune, config.prune.direction(config.metric)
        schedule = settings.schedule(mode)
        if config.fast:
            schedule = Schedule(schedule.levels[-2:], 1, 1, schedule.order, schedule.restarts[:1])
        init: Init = settings.criterion()
        self.callback = BranchPruning(
            schedule,
            **settings.plan_options(),
            init=init,
            example=example,
            monitor=settings.monitor or f"{config.metric.val}_branch",
            learning_rate=settings.learning_rate,
            restore_best=mode if settings.restore_best else None,
            thaw_at=settings.thaw_at,
            recalibrate=settings.recalibrate,
            compile=config.compile,
        )

    def check(self) -> Plan:
        """Plan; see `Method`."""
        planned = plan(self.config.model, self.example, **self.config.prune.plan_options())
        for name in self.callback.schedule.order or ():
            planned.branches_within(name)
        return planned

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Blend and collapse; see `Method`."""
        callback, config = self.callback, self.config
        task = config.prune_task(dense)
        trainer = stages.fit(self.stage, task, callback.schedule.max_epochs, callback)
        assert callback.small is not None and callback.blended is not None
        assert callback.plan is not None and callback.collapse_error is not None
        blended, small = deepcopy(callback.blended), callback.small.cpu()  # a copy is not compiled
        task = config.prune_task(blended)
        return Pruned(
            small,
            callback.plan,
            callback.collapse_error,
            own_dtype_error(blended.cpu(), small),
            {"blended_at_zero": stages.score(task, test=False)["val"]},
            trainer,
        )


class Rounds:
    """The three-stage pipeline: an α that jumps to 0, a collapse, fine-tuning, and again.

    Args:
        config: The configuration of the run; `prune.keep` is what a round keeps.
        rounds: When it ends.
        example: Input of one example.
    """

    def __init__(self, config: RunConfig, rounds: RoundsConfig, example: Tensor) -> None:
        self.config, self.rounds, self.example = config, rounds, example
        self.init = config.prune.criterion()

    def check(self) -> Plan:
        """Plan the first round; see `Method`."""
        student_task(self.config.prune_task, self.config.model, self.config.model)
        return plan(self.config.model, self.example, **self.config.prune.plan_options())

    def prune(self, dense: nn.Module, stages: Stages, score: float) -> Pruned:
        """Prune until the validation score has fallen too far; see `Method`."""
        sign = 1 if self.config.metric.mode == "max" else -1
        small, widths = dense, dict[str, int]()
        rounds: list[dict[str, Any]] = []
        for number in range(1, (2 if self.config.fast else self.rounds.count) + 1):
            planned = self._plan(number, small)
            if planned is None:
                break
            narrower, found = self._round(number, dense, small, planned, stages)
            kept = sign * (score - found["val"]) <= self.rounds.max_drop
            rounds.append(found | {"kept": kept})
            if not kept:
                break
            small, widths = narrower, widths | found["widths"]
        if not widths:
            raise PruneError(
                f"round 1 lost more than max_drop (={self.rounds.max_drop}): {score:.4g} -> "
                f"{rounds[0]['val']:.4g}; keep more than keep (={self.config.prune.keep})"
            )
        error, own = (max(each[key] for each in rounds) for key in ("collapse_error", "own_error"))
        return Pruned(small, self._overall(dense, widths), error, own, {}, rounds=rounds)

    def _overall(self, dense: nn.Module, widths: dict[str, int]) -> Plan:
        """Return the plan that leads from the dense model to some widths at once."""
        options = self.config.prune.plan_options()
        options = {name: options[name] for name in ("exclude", "inside", "opaque")}
        before = {group.name: group.width for group in plan(dense, self.example, **options).groups}
        shares = {name: width / before[name] for name, width in widths.items()}
        return plan(dense, self.example, shares, **options)

    def _plan(self, number: int, wide: nn.Module) -> Plan | None:
        """Plan a round; None where an earlier one has left nothing that can shrink."""
        try:
            return plan(wide, self.example, **self.config.prune.plan_options())
        except PruneError:
            if number == 1:
                raise
            return None

    def _round(
        self, number: int, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Narrow and fine-tune a model, or read what an earlier run made of it."""
        stage = f"round_{number:02}"
        seed_everything(self.config.seed, workers=True, verbose=False)  # a random choice, too
        blended = attach(wide, planned, self.init)
        blended.alpha = 0.0
        small, error = collapse_with_error(blended)
        own = own_dtype_error(blended, small)
        path = self.config.output / stage / "small.safetensors"
        found = stages.finished(stage)
        if found is None:
            task = student_task(self.config.prune_task, dense, small)
            stages.fit(stage, task, 1 if self.config.fast else self.rounds.epochs, Vitals())
            found = {
                "round": number,
                "val": stages.score(task, test=False)["val"],
                "params": planned.after.params,
                "macs": planned.after.macs,
                "channels": planned.after.channels,
                "widths": {planned.groups[i].name: planned.groups[i].kept for i in planned.pruned},
                "collapse_error": error,
                "own_error": own,
            }
            save(small.cpu(), path)
            stages.finish(stage, **found)
        else:
            load_weights(small, path)
            del found["record"]
        return small, found

"""The α-blended branches: trained beside what they replace, and collapsed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_type_hints

from torch import nn

from branchprune.artifacts.serialization import save
from branchprune.blending import schedules
from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.path_sampling import Mixing, Norms
from branchprune.blending.schedules import Mode, Plateau, Schedule
from branchprune.collapsing.own_dtype import own_dtype_error
from branchprune.errors import PruneError, whole
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.run.shrinking import Calibrated, Pruned, Setup, at_widths
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import student_task
from branchprune.lightning import BranchPruning
from branchprune.lightning.ema import averaging
from branchprune.lightning.freezing import originals_learn
from branchprune.planning.plan import Plan

LEVELS: dict[str, Callable[..., tuple[float, ...]]] = {
    make.__name__: make
    for make in (schedules.steps, schedules.multiplicative, schedules.linear, schedules.cosine)
}
"""Schedules by name; the one argument is the first, a whole number where it is an int."""


@dataclass
class BlendConfig(Calibrated):
    """Blend branches in while α falls from 1 to 0, and collapse.

    Args:
        levels: α: a list of levels, or one of {steps: size}, {multiplicative: decay},
            {linear: levels}, {cosine: levels}.
        hold: Epochs at each level, or a plateau: {max_epochs: 35, patience: 3}, as long as
            `monitor` gets better.
        final_hold: Epochs at α = 0, or a plateau; null: as `hold`.
        order: Groups or modules to prune one after another; null: all at once.
        monitor: Metric that a plateau watches; null: that of the branch alone.
        monitor_mode: Whether `monitor` is to be large or small; null: as the metric of the run,
            which does for that metric alone.
        restarts: Learning rates at which α = 0 is held once more each, restarted there.
        learning_rate: At each level, keep the learning rate going or restart it.
        restore_best: End each level with the weights of its best epoch, by `monitor`.
        thaw_at: α at and below which the original layers learn: 1: from the start; null: never.
        mixing: "sum", or sampled by "group", "step" or "sample"; see `attach`.
        matching: Weight of the feature matching; see `attach`.
        norms: What norms behind a weighted sum do: take the "batch" statistics, keep ("kept")
            their own, or stand apart ("private") for each path; see `attach`.
        frozen: Patterns of names of parameters of the blended model that do not learn meanwhile,
            such as "*.norm1.weight" for the scales of `model`, `twin` and `private`.
        average: Decay of an exponential moving average of the weights over the steps, which is what
            is validated and kept; 0: none.
        recalibrate: Recent training batches that BatchNorm takes its statistics from when the
            branch alone is validated.
    """

    levels: dict[str, float] | list[float] = field(default_factory=lambda: {"steps": 0.1})
    hold: int | Plateau = 1
    final_hold: int | Plateau | None = None
    order: list[str] | None = None
    monitor: str | None = None
    monitor_mode: Mode | None = None
    restarts: list[float] = field(default_factory=list)
    learning_rate: Literal["keep", "restart"] = "keep"
    restore_best: bool = False
    thaw_at: float | None = 1.0
    mixing: Mixing = "sum"
    matching: float = 0.0
    norms: Norms = "batch"
    frozen: list[str] = field(default_factory=list)
    average: float = 0.0
    recalibrate: int = 16

    def __post_init__(self) -> None:
        whole("blend.recalibrate", self.recalibrate)
        averaging(self.average)  # finds what is wrong
        if self.average and self.restore_best:
            raise PruneError(
                f"average (={self.average}) and restore_best (=true) exclude each other: both "
                "say which weights are kept"
            )

    def direction(self, metric: MetricConfig) -> Mode:
        """Return whether what plateaus and `restore_best` watch is to be large or small.

        Args:
            metric: The metric of the run.

        Raises:
            PruneError: `monitor` is another metric, and nothing says so.
        """
        if self.monitor_mode is not None:
            return self.monitor_mode
        if self.monitor in (None, metric.val, f"{metric.val}_branch"):
            return metric.mode
        plateaus = [h for h in (self.hold, self.final_hold) if isinstance(h, Plateau)]
        if any(plateau.mode == "min" for plateau in plateaus):  # "max" may be no one's choice
            return "min"
        if plateaus or self.restore_best:
            raise PruneError(
                f"monitor_mode (=None) must be 'max' or 'min': monitor (={self.monitor!r}) is not "
                f"the metric of the run (={metric.val!r})"
            )
        return metric.mode

    def schedule(self, mode: Mode) -> Schedule:
        """Return the schedule that the fields describe.

        Args:
            mode: Whether what a plateau watches is to be large or small; see `direction`.
        """
        hold, final = self.hold, self.final_hold
        hold = replace(hold, mode=mode) if isinstance(hold, Plateau) else hold
        final = replace(final, mode=mode) if isinstance(final, Plateau) else final
        return Schedule(levels_of(self.levels), hold, final, self.order, self.restarts)

    def with_last_stage(self, epochs: int) -> BlendConfig:
        """Return a copy with so many epochs at α = 0, and at each restart; see `Algorithm`."""
        self._check_counted()
        return replace(self, final_hold=epochs)

    def epochs_to_train(self, metric: MetricConfig, dense: nn.Module, planned: Plan) -> list[Epoch]:
        """Return each epoch of the schedule, with the blended model at its α; see `Algorithm`."""
        self._check_counted()
        found = []
        for alpha in self.schedule(self.direction(metric)):
            alphas = alpha.values() if isinstance(alpha, dict) else [alpha]
            frozen = not originals_learn(self.thaw_at, alphas)
            make = partial(self._blended, dense, planned, alpha, frozen)
            found.append(Epoch(("blend", _kind(alpha), frozen), make))
        return found

    def _check_counted(self) -> None:
        for name in ("hold", "final_hold"):
            if isinstance(getattr(self, name), Plateau):
                raise PruneError(
                    f"cost: blend.{name} (={getattr(self, name)}) must be a number of epochs"
                )

    def _blended(
        self, dense: nn.Module, planned: Plan, alpha: float | dict[str, float], frozen: bool
    ) -> Blended:
        blended = attach(
            dense, planned, mixing=self.mixing, matching=self.matching, norms=self.norms
        )
        blended.alpha = alpha
        if frozen:
            blended.model.requires_grad_(False)
        return blended

    def _callback(self, setup: Setup) -> BranchPruning:
        settings, criterion = setup.settings, setup.criterion
        mode = self.direction(settings.metric)
        schedule = self.schedule(mode)
        if settings.fast:
            schedule = Schedule(schedule.levels[-2:], 1, 1, schedule.order, schedule.restarts[:1])
        return BranchPruning(
            schedule,
            **setup.widths.options(),
            init=setup.init,
            calibration=criterion.calibration,
            fit=criterion.fit,
            example=setup.example,
            monitor=self.monitor or f"{settings.metric.val}_branch",
            learning_rate=self.learning_rate,
            restore_best=mode if self.restore_best else None,
            thaw_at=self.thaw_at,
            mixing=self.mixing,
            matching=self.matching,
            norms=self.norms,
            frozen=self.frozen,
            recalibrate=self.recalibrate,
            compile=settings.compile,
        )

    def check(self, setup: Setup, planned: Plan) -> None:
        """Look for the groups of `order`, which must be all; see `Algorithm`."""
        self._callback(setup)  # finds what is wrong
        if self.order is None:
            return
        within = {branch for name in self.order for branch in planned.branches_within(name)}
        left = [planned.groups[i].name for n, i in enumerate(planned.pruned) if n not in within]
        if left:
            raise PruneError(
                f"blend.order (={self.order}) leaves out {', '.join(left)}, whose α would "
                "never fall: name them, too, or exclude them in widths.exclude"
            )

    def narrow(
        self,
        setup: Setup,
        stage: str,
        dense: nn.Module,
        wide: nn.Module,
        planned: Plan,
        stages: Stages,
    ) -> Pruned:
        """Blend and collapse, or read what an earlier run made; see `Algorithm`."""
        settings = setup.settings
        path, found = settings.output / stage / "small.safetensors", stages.finished(stage)
        if found is not None:
            small = at_widths(wide, planned)
            load_weights(small, path)
            collapse_error, own_error = found["errors"]
            return Pruned(small, planned, collapse_error, own_error, found["scores"])
        callback = self._callback(setup)
        task = student_task(settings.prune_task, dense, wide)
        average = averaging(self.average)
        trainer = stages.fit(stage, task, callback.schedule.max_epochs, callback, *average)
        assert callback.small is not None and callback.blended is not None
        assert callback.collapse_error is not None
        blended, small = deepcopy(callback.blended), callback.small.cpu()  # a copy is not compiled
        task = student_task(settings.prune_task, dense, blended)
        scores = {"blended_at_zero": stages.score(task)}
        errors = callback.collapse_error, own_dtype_error(blended.cpu(), small)
        save(small, path)
        stages.finish(stage, errors=errors, scores=scores)
        return Pruned(small, planned, *errors, scores, loggers=trainer.loggers)


def levels_of(value: dict[str, float] | list[float]) -> tuple[float, ...]:
    """Return the levels of α that a configuration says.

    Raises:
        PruneError: It names no schedule.
    """
    if isinstance(value, list):
        return tuple(value)
    if len(value) != 1 or not value.keys() <= LEVELS.keys():
        raise PruneError(f"levels (={value}) must be a list or name one of {', '.join(LEVELS)}")
    [(name, argument)] = value.items()
    make = LEVELS[name]
    whole = next(iter(get_type_hints(make).values())) is int
    if whole and argument != int(argument):
        raise PruneError(f"levels (={value}): {name} takes a whole number")
    return make(int(argument) if whole else argument)


def _kind(alpha: float | dict[str, float]) -> Any:
    """Return what epochs have in common that cost the same: α matters only where it is 0 or 1."""
    if isinstance(alpha, dict):
        return tuple((name, _kind(each)) for name, each in alpha.items())
    return 0.5 if 0 < alpha < 1 else alpha

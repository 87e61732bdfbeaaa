"""The ways from a wide to a small model: blending, or the removal of channels at once."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from branchprune.artifacts.serialization import save
from branchprune.blending.attach import Init, attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.blending.schedules import Schedule
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.collapsing.collapse_check import own_dtype_error
from branchprune.errors import PruneError
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.stages import Stages, student_task
from branchprune.experiments.run.torch_pruning import Pruner, prune_by
from branchprune.lightning import BranchPruning
from branchprune.lightning.ema import averaging
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass
class Narrowed:
    """A model that has become small.

    Attributes:
        small: The small model, on the CPU.
        plan: From the wide to the small model.
        collapse_error: Relative error of the collapse in float64.
        own_dtype_error: The same in the model's own dtype.
        scores: Validation scores on the way, by name.
        loggers: Those of the training on the way.
    """

    small: nn.Module
    plan: Plan
    collapse_error: float
    own_dtype_error: float
    scores: dict[str, float] = field(default_factory=dict)
    loggers: list[Logger] = field(default_factory=list)


class Narrowing(Protocol):
    """A way from a wide to a small model."""

    def check(self, planned: Plan) -> None:
        """Find every mistake that can be found before training."""

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Make a wide model small.

        Args:
            stage: Name of the stage.
            dense: The trained model, a teacher.
            wide: The model to make small; it is not changed.
            planned: From the wide to the small model.
            stages: Where to train.
        """


def choose_narrowing(config: RunConfig, example: Tensor) -> Narrowing:
    """Return the way that a configuration asks for."""
    settings = config.prune
    if settings.levels is not None:
        return Blending(config, example)
    if settings.pruner is not None:
        return TorchPruning(settings.pruner)
    return AtOnce(settings.criterion(), settings.calibration, settings.fit)


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


class AtOnce:
    """An α that jumps to 0, and a collapse: classical removal of channels.

    Args:
        init: How the channels are chosen.
        calibration: Training batches by which they are.
        fit: Training batches on which what remains is fitted to what was there; 0: none.
    """

    def __init__(self, init: Init, calibration: int = 0, fit: int = 0) -> None:
        if min(fit, calibration) < 0:
            raise PruneError(
                f"fit (={fit}) and calibration (={calibration}) must be numbers of batches"
            )
        self.init, self.calibration, self.fit = init, calibration, fit

    def check(self, planned: Plan) -> None:
        """Nothing is left to be found; see `Narrowing`."""

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Choose and collapse; see `Narrowing`."""
        data = stages.config.data
        blended = attach(wide, planned, self.init, batches=training_inputs(data, self.calibration))
        if self.fit:
            blended = fit_expand(blended, training_inputs(data, self.fit))
        blended.alpha = 0.0
        small, error = collapse_with_error(blended)
        return Narrowed(small, planned, error, own_dtype_error(blended, small))


class TorchPruning:
    """One of Torch-Pruning's own pruners.

    Args:
        pruner: Which one.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def check(self, planned: Plan) -> None:
        """Nothing is left to be found; see `Narrowing`."""

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Remove channels; nothing is folded, so there is no error; see `Narrowing`."""
        return Narrowed(prune_by(self.pruner, wide, planned), planned, 0.0, 0.0)


class Blending:
    """α-blended branches, trained and collapsed.

    Args:
        config: The configuration of the run.
        example: Input of one example.
    """

    def __init__(self, config: RunConfig, example: Tensor) -> None:
        self.config, self.example = config, example
        settings = config.prune
        if settings.average and settings.restore_best:
            raise PruneError(
                f"average (={settings.average}) and restore_best (=true) exclude each other: both "
                "say which weights are kept"
            )
        self._callback()  # finds what is wrong

    def _callback(self) -> BranchPruning:
        config, settings = self.config, self.config.prune
        mode = settings.direction(config.metric)
        schedule = settings.schedule(mode)
        if config.fast:
            schedule = Schedule(schedule.levels[-2:], 1, 1, schedule.order, schedule.restarts[:1])
        init: Init = settings.criterion()
        return BranchPruning(
            schedule,
            **settings.plan_options(),
            init=init,
            example=self.example,
            monitor=settings.monitor or f"{config.metric.val}_branch",
            learning_rate=settings.learning_rate,
            restore_best=mode if settings.restore_best else None,
            thaw_at=settings.thaw_at,
            mixing=settings.mixing,
            matching=settings.matching,
            calibration=settings.calibration,
            fit=settings.fit,
            recalibrate=settings.recalibrate,
            compile=config.compile,
        )

    def check(self, planned: Plan) -> None:
        """Look for the groups of `order`; see `Narrowing`."""
        for name in self.config.prune.order or ():
            planned.branches_within(name)

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Blend and collapse, or read what an earlier run made; see `Narrowing`."""
        path, found = self.config.output / stage / "small.safetensors", stages.finished(stage)
        if found is not None:
            small = AtOnce("l1").narrow(stage, dense, wide, planned, stages).small
            load_weights(small, path)
            collapse_error, own_error = found["errors"]
            return Narrowed(small, planned, collapse_error, own_error, found["scores"])
        callback = self._callback()
        task = student_task(self.config.prune_task, dense, wide)
        average = averaging(self.config.prune.average)
        trainer = stages.fit(stage, task, callback.schedule.max_epochs, callback, *average)
        assert callback.small is not None and callback.blended is not None
        assert callback.collapse_error is not None
        blended, small = deepcopy(callback.blended), callback.small.cpu()  # a copy is not compiled
        task = student_task(self.config.prune_task, dense, blended)
        scores = {"blended_at_zero": stages.score(task, test=False)["val"]}
        errors = callback.collapse_error, own_dtype_error(blended.cpu(), small)
        save(small, path)
        stages.finish(stage, errors=errors, scores=scores)
        return Narrowed(small, planned, *errors, scores, trainer.loggers)

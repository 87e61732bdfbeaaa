"""The configuration of a run: what a YAML may say, and the parser that checks it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, seed_everything
from torch import nn

from branchprune import schedules
from branchprune.branches import INITS, Init
from branchprune.errors import PruneError
from branchprune.schedules import Plateau, Schedule

TaskFactory = Callable[[nn.Module], LightningModule]

LEVELS: dict[str, Callable[..., tuple[float, ...]]] = {
    "steps": schedules.steps,
    "multiplicative": schedules.multiplicative,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
}


@dataclass
class MetricConfig:
    """The metric that a run is judged by.

    Args:
        val: Name under which the task logs it at validation.
        test: Name under which the task logs it at the test.
        label: What reports call it.
        mode: Whether it is to be large or small.
        format: How reports show it: "percent" for a fraction, "number" for anything else.
    """

    val: str = "metric/val_acc"
    test: str = "metric/test_acc"
    label: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    format: Literal["percent", "number"] = "percent"


@dataclass
class DenseConfig:
    """Training of the dense model.

    Args:
        epochs: Number of epochs; 0 needs a checkpoint.
        checkpoint: Weights to start from: a .safetensors file, or a state_dict or Lightning
            checkpoint, which is read without running any code in it.
    """

    epochs: int = 10
    checkpoint: str | None = None


@dataclass
class RoundsConfig:
    """The classical pipeline: remove channels at once, fine-tune the small model, and again.

    Args:
        max_drop: The rounds end when the validation metric of the small model is worse than the
            dense model's by more than this; that round does not count.
        count: The most rounds.
        epochs: Epochs of fine-tuning in each.
    """

    max_drop: float = 0.04
    count: int = 30
    epochs: int = 10


@dataclass
class PruneConfig:
    """Pruning: what stays, how α moves, how long.

    Args:
        keep: Fraction of the channels to keep, or one a layer.
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round kept widths to a multiple of this.
        inside: Path of a module: only what is inside it is traced and pruned.
        opaque: Paths of modules that are not looked into.
        init: "l1", "l2", "random", or the import path of a criterion.
        levels: α: a list of levels, or one of {steps: size}, {multiplicative: decay},
            {linear: levels}, {cosine: levels}.
        hold: Epochs at each level, or a plateau.
        final_hold: Epochs at α = 0, or a plateau; null: as `hold`.
        order: Groups or modules to prune one after another; null: all at once.
        monitor: Metric that a plateau watches; null: that of the branch alone.
        restarts: Learning rates at which α = 0 is held once more each, restarted there.
        learning_rate: At each level, keep the learning rate going or restart it.
        restore_best: End each level with the weights of its best epoch, by `monitor`.
        thaw_at: α at and below which the original layers learn: 1: from the start; null: never.
        rounds: Prune in rounds, each from the small model of the one before; null: once.
        recalibrate: Recent training batches that BatchNorm takes its statistics from when the
            branch alone is validated.
        task: Arguments of the task that differ from those of the dense training.
    """

    keep: float | dict[str, float] = 0.5
    exclude: list[str] = field(default_factory=list)
    multiple_of: int = 1
    inside: str = ""
    opaque: list[str] = field(default_factory=list)
    init: str = "l1"
    levels: dict[str, float] | list[float] = field(default_factory=lambda: {"steps": 0.1})
    hold: int | Plateau = 1
    final_hold: int | Plateau | None = None
    order: list[str] | None = None
    monitor: str | None = None
    restarts: list[float] = field(default_factory=list)
    learning_rate: Literal["keep", "restart"] = "keep"
    restore_best: bool = False
    thaw_at: float | None = 1.0
    rounds: RoundsConfig | None = None
    recalibrate: int = 16
    task: dict[str, Any] = field(default_factory=dict)

    def plan_options(self) -> dict[str, Any]:
        """Return what `plan` takes."""
        names = ("keep", "exclude", "multiple_of", "inside", "opaque")
        return {name: getattr(self, name) for name in names}

    def schedule(self, mode: Literal["max", "min"]) -> Schedule:
        """Return the schedule that the fields describe.

        Args:
            mode: Whether the metric of the run, which a plateau watches by default, is to be large
                or small.
        """
        hold, final = self.hold, self.final_hold
        if isinstance(hold, Plateau) and self.monitor is None:
            hold = replace(hold, mode=mode)
        if isinstance(final, Plateau) and self.monitor is None:
            final = replace(final, mode=mode)
        return Schedule(_levels(self.levels), hold, final, self.order, self.restarts)

    def criterion(self) -> Init:
        """Return what `attach` takes as `init`."""
        if self.init in ("random", *INITS):
            return self.init
        module, _, name = self.init.rpartition(".")
        if not module:
            known = ", ".join(("random", *INITS))
            raise PruneError(f"init (={self.init!r}) must be one of {known}, or an import path")
        try:
            return _checked(getattr(importlib.import_module(module), name), self.init)
        except (ImportError, ValueError, AttributeError) as error:
            raise PruneError(f"init (={self.init!r}) cannot be imported: {error}") from error


def _checked(value: Any, name: str) -> Init:
    if not callable(value):
        raise PruneError(f"init (={name!r}) is not a function")
    criterion: Init = value
    return criterion


def _levels(value: dict[str, float] | list[float]) -> tuple[float, ...]:
    if isinstance(value, list):
        return tuple(value)
    if len(value) != 1 or not value.keys() <= LEVELS.keys():
        raise PruneError(f"levels (={value}) must be a list or name one of {', '.join(LEVELS)}")
    [(name, argument)] = value.items()
    whole = name in ("linear", "cosine")
    if whole and argument != int(argument):
        raise PruneError(f"levels (={value}): {name} takes a whole number")
    return LEVELS[name](int(argument) if whole else argument)


def make_parser() -> ArgumentParser:
    """Return the parser of `branchprune run`."""
    parser = ArgumentParser(
        prog="branchprune run",
        exit_on_error=False,
        description="Train, prune, collapse, verify, benchmark, report.",
    )
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_argument("--name", type=str, default="run", help="Name of the experiment")
    parser.add_argument("--method", type=str, default="blended", help="Name of the method")
    parser.add_argument("--preset", type=str, default="own", help="Name of the settings")
    parser.add_argument("--output", type=Path, required=True, help="Folder to write; must be new")
    parser.add_argument(
        "--results",
        type=Path | None,
        default=None,
        help="File to which a finished run adds a line; null: results/NAME.jsonl beside OUTPUT",
    )
    parser.add_argument(
        "--resume",
        action=ActionYesNo,
        default=False,
        help="Continue a run there that was broken off; start it where there is none",
    )
    parser.add_argument(
        "--overwrite", type=bool, default=False, help="Move an earlier run there to OUTPUT.previous"
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of all random numbers")
    parser.add_argument("--fast", type=bool, default=False, help="Two batches an epoch: a dry run")
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="Device, as Lightning names it"
    )
    parser.add_argument("--precision", type=str, default="32-true", help="As Lightning names it")
    parser.add_argument("--compile", type=bool, default=False, help="Use torch.compile")
    parser.add_subclass_arguments(nn.Module, "model", required=True, help="The network")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="The data")
    parser.add_argument(
        "--task", type=TaskFactory, required=True, help="The LightningModule around the network"
    )
    for name, kind in (("metric", MetricConfig), ("dense", DenseConfig), ("prune", PruneConfig)):
        parser.add_class_arguments(kind, name)
    return parser


@dataclass
class RunConfig:
    """Everything a run needs, checked and built.

    Attributes:
        name: Name of the experiment.
        method: Name of the method.
        preset: Name of the settings.
        output: Folder to write.
        results: File to which a finished run adds a line.
        resume: Continue a run that was broken off.
        overwrite: Replace an existing folder.
        seed: Seed of all random numbers.
        fast: Two batches an epoch, one epoch a level: a dry run.
        accelerator: Device, as Lightning names it.
        precision: Precision, as Lightning names it.
        compile: Whether to use torch.compile.
        model: The network.
        data: The data module.
        task: Makes the task of the dense training from a network.
        prune_task: Makes the task of the pruning.
        metric: What the run is judged by.
        dense: The dense training.
        prune: The pruning.
        text: The configuration as YAML.
    """

    name: str
    method: str
    preset: str
    output: Path
    results: Path | None
    resume: bool
    overwrite: bool
    seed: int
    fast: bool
    accelerator: str
    precision: str
    compile: bool
    model: nn.Module
    data: LightningDataModule
    task: TaskFactory
    prune_task: TaskFactory
    metric: MetricConfig
    dense: DenseConfig
    prune: PruneConfig
    text: str


def help_text() -> str:
    """Return the help of `branchprune run`, without every module that torch happens to have."""
    return re.sub(r",\s+known\s+subclasses:[^)]*", "", make_parser().format_help())


def parse(args: list[str]) -> RunConfig:
    """Read a configuration from command-line arguments and build what it names.

    Args:
        args: Arguments of `branchprune run`, the first of which may be YAML files; a later one
            overrides what it names.

    Raises:
        PruneError: A key or value is wrong; the key is named.
    """
    parser = make_parser()
    files = list(takewhile(lambda argument: not argument.startswith("-"), args))
    args = [*(part for file in files for part in ("--config", file)), *args[len(files) :]]
    try:
        config = parser.parse_args(args)
        config.pop("config", None)
        pruning = config.clone()
        overrides = pruning.prune.task or {}
        arguments = pruning.task.init_args.as_dict() | overrides
        task = {"class_path": pruning.task.class_path, "init_args": arguments}
        pruning = parser.parse_object({**config.as_dict(), "task": task})
        seed_everything(config.seed, workers=True, verbose=False)
        built = parser.instantiate(config)
        prune_task = parser.instantiate(pruning).task
    except (ArgumentError, ValueError, TypeError) as error:
        raise PruneError(str(error)) from error
    for key in ("overwrite", "resume"):
        config.pop(key)  # a stored configuration must not replace anything by itself
    return RunConfig(**vars(built), prune_task=prune_task, text=parser.dump(config))

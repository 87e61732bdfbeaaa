"""The configuration of a run: what a YAML may say, and the parser that checks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, seed_everything
from torch import nn

from branchprune.errors import PruneError
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.run.settings import DenseConfig, MetricConfig, PruneConfig

TaskFactory = Callable[[nn.Module], LightningModule]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

COMMANDS = {
    "run": "Train, prune, collapse, verify, benchmark, report.",
    "dense": "Train the dense model of a run.",
}


def make_parser(command: str = "run") -> ArgumentParser:
    """Return the parser of a command that takes the configuration of a run."""
    parser = ArgumentParser(
        prog=f"branchprune {command}",
        exit_on_error=False,
        description=COMMANDS[command],
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
    parser.add_argument(
        "--precision", type=Precision, default="32-true", help="As Lightning names it"
    )
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
        precision: As Lightning names it; weights are float32.
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
    precision: Precision
    compile: bool
    model: nn.Module
    data: LightningDataModule
    task: TaskFactory
    prune_task: TaskFactory
    metric: MetricConfig
    dense: DenseConfig
    prune: PruneConfig
    text: str

    @property
    def dataset(self) -> str:
        """What result lines call the data."""
        return str(getattr(self.data, "name", "") or type(self.data).__name__)


def help_text(command: str) -> str:
    """Return the help of a command, without every module that torch happens to have."""
    return re.sub(r",\s+known\s+subclasses:[^)]*", "", make_parser(command).format_help())


def parse(args: list[str]) -> RunConfig:
    """Read a configuration from command-line arguments and build what it names.

    Args:
        args: Arguments of `branchprune run`, the first of which may be YAML files; a later one
            overrides what it names.

    Raises:
        PruneError: A key or value is wrong; the key is named.
    """
    parser = make_parser()
    try:
        config = parser.parse_args(files_as_options(args))
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

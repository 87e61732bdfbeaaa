"""The configuration of a run: what a YAML may say, and the parser that checks it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import get_args, get_type_hints

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace
from pytorch_lightning import LightningDataModule, seed_everything
from torch import nn

from branchprune.errors import PruneError
from branchprune.experiments.arguments import files_as_options, files_named
from branchprune.experiments.run.keys import check_keys
from branchprune.experiments.run.one_line import said
from branchprune.experiments.run.parser_errors import UNMADE, explained
from branchprune.experiments.run.prune_config import PruneConfig, algorithms, prune_sections
from branchprune.experiments.run.settings import (
    DenseConfig,
    ExportConfig,
    MetricConfig,
    Precision,
    RunSettings,
    TaskFactory,
)

COMMANDS = {
    "run": "Train a dense model, prune it, collapse, verify, measure, and write a report.",
    "dense": "Train the dense model of a run alone.",
}
SWITCH = "{}: set, with the defaults below; null: not set"
EXPORT = "Files of both models for a runtime, judged and timed there: {format: onnx, quantize: 8}"
DEPTH = "Residual blocks that are left out before: {blocks: 3, levels: {steps: 0.25}, hold: 1}"
ONE = f"Exactly one of {', '.join(algorithms())} must be set in prune."
OTHERS = {
    **dict.fromkeys(algorithms(), ONE),
    "task": "Arguments of the task that differ from those of the dense training",
    "depth": DEPTH,
}


@dataclass
class RunConfig(RunSettings):
    """Everything a run needs, checked and built.

    Attributes:
        prune: The pruning.
    """

    prune: PruneConfig


def make_parser(command: str = "run") -> ArgumentParser:
    """Return the parser of a command that takes the configuration of a run."""
    parser = _parser_without_pruning(command)
    parser.add_class_arguments(PruneConfig, "prune")
    return parser


def make_listing(command: str = "run") -> ArgumentParser:
    """Return a parser for the help, in which each option of each section of `prune` is listed.

    It cannot tell a section that is not set from one of defaults, so it parses nothing.
    """
    parser, sections = _parser_without_pruning(command), prune_sections()
    parser.add_argument("--variant", metavar="NAME", help="Variant of the file; repeatable")
    for name, hint in get_type_hints(PruneConfig).items():
        if name not in sections:
            parser.add_argument(f"--prune.{name}", type=hint, default={}, help=OTHERS[name])
            continue
        summary = str(getdoc(sections[name])).partition("\n")[0].removesuffix(".")
        group = parser.add_argument_group(f"prune.{name}: {summary}", OTHERS.get(name))
        if type(None) in get_args(hint):
            group.add_argument(f"--prune.{name}", metavar="{} | null", help=SWITCH)
        group.add_class_arguments(sections[name], f"prune.{name}", as_group=False)
    return parser


def _sections() -> dict[str, type]:
    """Return the dataclass of each key that has a mapping of others."""
    within = {f"prune.{name}": kind for name, kind in prune_sections().items()}
    return {"metric": MetricConfig, "dense": DenseConfig, "prune": PruneConfig, **within}


def _parser_without_pruning(command: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"branchprune {command}",
        usage=f"branchprune {command} CONFIG.yaml [CONFIG.yaml ...] [--option value ...]",
        exit_on_error=False,
        allow_abbrev=False,
        description=COMMANDS[command],
    )
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_argument("--name", type=str, default="run", help="Name of the experiment")
    parser.add_argument(
        "--method",
        type=str | None,
        default=None,
        help="Label of this way to prune in result lines; null: the key of its algorithm",
    )
    parser.add_argument(
        "--preset",
        type=str,
        default="own",
        help="Label of the size of the experiment in result lines",
    )
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
    parser.add_argument(
        "--fast",
        type=bool,
        default=False,
        help="A dry run: two batches an epoch and a score, one epoch a stage; scores and "
        "times mean nothing",
    )
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="Device, as Lightning names it"
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        default="32-true",
        help="As Lightning names it; weights stay float32, so others that it has are refused",
    )
    parser.add_argument("--compile", type=bool, default=False, help="Use torch.compile")
    _add_parts(parser)
    return parser


def _add_parts(parser: ArgumentParser) -> None:
    """Add what a run is put together from."""
    for name, base, text in (
        ("model", nn.Module, "The network; --model.help CLASS lists its arguments"),
        ("data", LightningDataModule, "The data; likewise --data.help"),
    ):
        parser.add_subclass_arguments(base, name, as_group=False, required=True, help=text)
    _add_task(parser)
    for name, kind in (("metric", MetricConfig), ("dense", DenseConfig)):
        parser.add_class_arguments(kind, name)
    parser.add_argument("--export", type=ExportConfig | None, default=None, help=EXPORT)


def _add_task(parser: ArgumentParser) -> None:
    text = "The LightningModule around the network; likewise --task.help"
    parser.add_argument("--task", type=TaskFactory, required=True, help=text)


def help_text(command: str) -> str:
    """Return the help of a command, without every module that torch happens to have."""
    text = re.sub(r",\s+known\s+subclasses:[^)]*", "", make_listing(command).format_help())
    text = re.sub(
        r"  --[\w.]+ CONFIG\s+Path to a configuration file\.\n", "", text
    )  # --config takes it
    return re.sub(r"^  --\S+\.help\b.*\n(   .*\n)*", "", text, flags=re.MULTILINE)


@cache
def _keys() -> tuple[set[str], dict[str, type], list[str]]:
    """Return every option, every section, and the keys that may be null."""
    actions = make_listing()._actions
    options = {option.lstrip("-") for action in actions for option in action.option_strings}
    sections = _sections()
    hints = {
        f"{section}.{name}".lstrip("."): hint
        for section, kind in {"": RunConfig, **sections}.items()
        for name, hint in get_type_hints(kind).items()
    }
    return options, sections, [name for name, hint in hints.items() if type(None) in get_args(hint)]


def parse(args: list[str]) -> RunConfig:
    """Read a configuration from command-line arguments and build what it names.

    Args:
        args: Arguments of `branchprune run`, the first of which may be YAML files; a later one
            overrides what it names.

    Raises:
        PruneError: A key or value is wrong; the key is named.
    """
    check_keys(files_named(args), *_keys())
    with _explained(args):
        parser, config = _read(args)
        tasks = ArgumentParser(exit_on_error=False)
        _add_task(tasks)
        arguments = config.task.init_args.as_dict() | (config.prune.task or {})
        task = {"class_path": config.task.class_path, "init_args": arguments}
        pruning = tasks.parse_object({"task": task})
        seed_everything(config.seed, workers=True, verbose=False)
        built = parser.instantiate(config)
        prune_task = tasks.instantiate(pruning).task
    return RunConfig(**vars(built), prune_task=prune_task, text=_stored(parser, config))


def stored_text(args: list[str]) -> str:
    """Return the configuration that a run with some arguments stores; nothing is built.

    Raises:
        PruneError: A key or value is wrong; the key is named.
    """
    check_keys(files_named(args), *_keys())
    with _explained(args):
        return _stored(*_read(args))


def _read(args: list[str]) -> tuple[ArgumentParser, Namespace]:
    parser = make_parser()
    config = parser.parse_args(files_as_options(args))
    config.pop("config", None)
    return parser, config


@contextmanager
def _explained(args: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        raise PruneError(explained(error, args)) from error
    except Exception as error:  # the class of a model, data module or task may raise anything
        raise PruneError(f"{UNMADE}: {said(error)}") from error


def _stored(parser: ArgumentParser, config: Namespace) -> str:
    """Return a configuration as YAML, without what must not replace anything by itself."""
    stored = config.clone()
    for key in ("overwrite", "resume"):
        stored.pop(key, None)
    # A null may be no default; what was read is valid.
    return str(parser.dump(stored, skip_unset=False, skip_validation=True))

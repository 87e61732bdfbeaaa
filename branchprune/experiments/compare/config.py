"""The configuration of `branchprune compare`: methods, budgets and seeds, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError
from branchprune.experiments.jobs import shown
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.variants import (
    OF_COMPARISON,
    OF_SEARCH,
    ConfigFile,
    check,
    read_file,
    read_settings,
)

KEYS = ("name", "seeds", "budgets", "methods")
DERIVED = ("text", "prune_task")
"""What the settings of a run hold beside what a file says."""
NAME = r"\w[\w.-]*"
COMMON = (
    *("base", "rows", "variants", OF_SEARCH),
    *(field.name for field in fields(RunConfig) if field.name not in DERIVED),
)
"""What a comparison may say of all its runs, and what it leaves alone."""


@dataclass(frozen=True)
class Budget:
    """What each method may spend, in epochs or multiply-adds; neither: what its rows say.

    Args:
        name: Its name, the preset of the lines of results.
        rows: Variants of the file that make it, on top of those of a method.
        epochs: Epochs.
        train_macs: Multiply-adds of training, as a multiple of those of the dense training.
    """

    name: str
    rows: tuple[str, ...] = ()
    epochs: int | None = None
    train_macs: float | None = None


@dataclass(frozen=True)
class Method:
    """A way to a small model.

    Args:
        name: Its name, the method of the lines of results.
        rows: Variants of the file that make it, one on top of the other.
        seeds: Its seeds.
        budgets: Names of its budgets.
    """

    name: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    budgets: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One run of a comparison."""

    method: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{_plain(self.budget)}/{_plain(self.method)}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Methods by budgets by seeds, from one dense model.

    Args:
        name: Its name; the lines of results have the experiment compare/NAME.
        path: Its file, which `branchprune run` understands, too: what all runs have in common.
        seeds: Seeds; the dense model is trained with the first.
        budgets: Budgets by name.
        methods: Methods by name, the most important first.
        metric: What the runs are judged by, as the file says.
        reference: Name of the method that all others are compared with, seed by seed; None: none.
        variants: Variants of the file that all runs have; the name ends in them.
        overlays: Files that override it in all runs.
    """

    name: str
    path: Path
    seeds: tuple[int, ...]
    budgets: dict[str, Budget]
    methods: dict[str, Method]
    metric: MetricConfig
    reference: str | None = None
    variants: tuple[str, ...] = ()
    overlays: tuple[Path, ...] = ()

    @property
    def experiment(self) -> str:
        """What the lines of results call it."""
        return f"compare/{self.name}"

    def command(self, root: Path) -> list[str]:
        """Return the command that makes all runs.

        Args:
            root: The folder that paths are relative to.
        """
        file, *overlays = [shown(path.absolute(), root) for path in (self.path, *self.overlays)]
        chosen = [part for name in self.variants for part in ("--variant", name)]
        chosen += ["--overlay", *overlays] if overlays else []
        return ["branchprune", "compare", file, *chosen]

    def runs(self) -> list[Run]:
        """Return every run, in order of seed, then budget, then method."""
        seeds = dict.fromkeys([*self.seeds, *(s for m in self.methods.values() for s in m.seeds)])
        return [
            Run(method.name, budget, seed)
            for seed in seeds
            for budget in self.budgets
            for method in self.methods.values()
            if seed in method.seeds and budget in method.budgets
        ]


def read(path: Path, variants: Sequence[str] = (), overlays: Sequence[Path] = ()) -> Comparison:
    """Read the configuration of a comparison.

    Args:
        path: A YAML file.
        variants: Variants of it, in which all runs differ from what the file says: another
            comparison, NAME+VARIANT.
        overlays: YAML files that override it in all runs; they may have variants, too.

    Raises:
        PruneError: The file cannot be read, or a key or value is wrong; both are named.
    """
    try:
        files = [*map(read_file, [path, *overlays])]
        settings = read_settings(path)
    except OSError as error:
        what = "overlay" if error.filename in map(str, overlays) else "config"
        told = f"{what} (={error.filename!r}) cannot be read: {error.strerror}"
        raise PruneError(told) from error
    check(variants, files, "variant")
    for file in overlays:
        if wrong := {*OF_COMPARISON} & {*read_settings(file)}:
            raise PruneError(f"overlay (={str(file)!r}) has {min(wrong)}: leave it to {path}")
    try:
        return _comparison(settings, files, tuple(variants))
    except PruneError as error:
        raise PruneError(f"{path}: {error}") from error


def _comparison(settings: Any, files: list[ConfigFile], variants: tuple[str, ...]) -> Comparison:
    file, *overlays = files
    settings = _mapping("the file", settings, [*dict.fromkeys([*KEYS, "reference", *COMMON])])
    missing = [key for key in KEYS if key not in settings]
    if missing:
        raise PruneError(f"{missing[0]} is missing")
    name = settings["name"]
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise _wrong("name", name, "letters, digits and _.-")
    for variant in variants:
        if not re.fullmatch(NAME, variant):
            raise _wrong("variant", variant, "letters, digits and _.-, for it names a file")
    seeds = _seeds("seeds", settings["seeds"])
    budgets = {
        key: _budget(key, value, file)
        for key, value in _named("budgets", settings["budgets"]).items()
    }
    methods = {
        key: _method(key, value, file, seeds, [*budgets])
        for key, value in _named("methods", settings["methods"]).items()
    }
    reference = settings.get("reference")
    if reference is not None and reference not in methods:
        raise _wrong("reference", reference, f"one of {', '.join(methods)}")
    comparison = Comparison(
        "+".join([name, *variants]),
        file.path,
        seeds,
        budgets,
        methods,
        _metric(files, variants),
        reference,
        variants,
        tuple(each.path for each in overlays),
    )
    _check_folders(comparison.runs())
    return comparison


def _check_folders(runs: Sequence[Run]) -> None:
    """Raise if two runs have one folder, or one that of the dense model."""
    folders: dict[str, Run] = {}
    for run in runs:
        other = folders.setdefault(run.name, run)
        if other != run:
            raise PruneError(f"{run} and {other} have one folder, {run.name}: rename one")
        if run.name.startswith("dense/"):
            raise PruneError(f"budgets has the name {run.budget!r}, the folder of the dense model")


def _wrong(key: str, value: Any, expected: str) -> PruneError:
    return PruneError(f"{key} (={value!r}) must be {expected}")


def _mapping(key: str, value: Any, known: Sequence[str]) -> dict[str, Any]:
    """Return a mapping of some of the known keys."""
    if not isinstance(value, dict):
        raise _wrong(key, value, f"a mapping of {', '.join(known)}")
    for name in value:
        if name not in known:
            raise PruneError(f"{key} has the key {name!r}; known are {', '.join(known)}")
    return value


def _named(key: str, value: Any) -> dict[str, Any]:
    """Return a mapping by name, of at least one."""
    if not isinstance(value, dict) or not value:
        raise _wrong(key, value, "a mapping by name, of at least one")
    for name in value:
        if not isinstance(name, str) or not _plain(name) or name.startswith("-"):
            raise PruneError(f"{key} has the name {name!r}, which must be text with a letter")
    return value


def _plain(name: str) -> str:
    """Return a name as a folder is called."""
    return re.sub(r"[^\w+-]+", "_", name).strip("_")


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    valid = isinstance(value, list) and value and all(type(seed) is int for seed in value)
    if not valid or min(value) < 0 or len({*value}) < len(value):
        raise _wrong(key, value, "a list of distinct whole numbers from 0")
    return tuple(value)


def _budget(name: str, value: Any, file: ConfigFile) -> Budget:
    key = f"budgets.{name}"
    given = _mapping(key, value, ("epochs", "train_macs", "rows"))
    rows, limits = _rows(key, given, file), {k: v for k, v in given.items() if k != "rows"}
    if len(limits) > 1:
        raise _wrong(key, value, "either epochs or train_macs, or neither: what the rows say")
    if not limits:
        return Budget(name, rows)
    [(kind, amount)] = limits.items()
    if kind == "epochs":
        if type(amount) is not int or amount < 1:
            raise _wrong(f"{key}.epochs", amount, "a positive whole number")
        return Budget(name, rows, epochs=amount)
    if type(amount) not in (int, float) or not 0 < amount < math.inf:
        raise _wrong(f"{key}.train_macs", amount, "a positive number, in dense trainings")
    return Budget(name, rows, train_macs=amount)


def _rows(key: str, given: Mapping[str, Any], file: ConfigFile) -> tuple[str, ...]:
    """Return the variants that a method or a budget names."""
    rows = given.get("rows", [])
    if not isinstance(rows, list):
        raise _wrong(f"{key}.rows", rows, "a list of variants")
    check(rows, [file], f"{key}.rows")
    return tuple(rows)


def _method(
    name: str, value: Any, file: ConfigFile, seeds: tuple[int, ...], budgets: list[str]
) -> Method:
    key = f"methods.{name}"
    given = _mapping(key, value, ("rows", "seeds", "budgets"))
    rows = _rows(key, given, file)
    own = _seeds(f"{key}.seeds", given["seeds"]) if "seeds" in given else seeds
    chosen = given.get("budgets", budgets)
    if not isinstance(chosen, list) or not chosen or any(each not in budgets for each in chosen):
        raise _wrong(f"{key}.budgets", chosen, f"a list of {', '.join(budgets)}")
    return Method(name, rows, own, tuple(chosen))


def _metric(files: Sequence[ConfigFile], variants: Sequence[str]) -> MetricConfig:
    """Return the metric of files, their bases and some variants; later ones override."""
    known = [each.name for each in fields(MetricConfig)]
    metric: dict[str, Any] = {}
    for settings in (settings for file in files for settings in file.layers(variants)):
        metric |= _mapping("metric", settings.get("metric") or {}, known)
    return MetricConfig(**metric)

"""The section `search` of a configuration: what is searched, and how; checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError, positive, whole
from branchprune.experiments.arguments import FILE, files_named
from branchprune.experiments.variants import OF_SEARCH, read_file, read_settings

Value = float | str
"""What a trial has of a key: a number, or a choice as the command line has it."""
SEARCHED = ("prune", "task", "data", "variant")
"""What trials may differ in: they share the dense model, its metric and where they are made."""
PRUNERS = ("median", "halving")


@dataclass(frozen=True)
class Range:
    """Numbers of a key, both ends included; whole ones where both ends are.

    Args:
        low: The least.
        high: The largest.
        log: Whether their logarithm is drawn.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def examples(self) -> list[Value]:
        """What is tried before anything is trained."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """Values of a key, as the command line has them."""

    examples: list[Value]


@dataclass(frozen=True)
class SearchConfig:
    """What is searched.

    Args:
        trials: Number of runs; those that are stopped early, or fail, count.
        space: Values by key of a run's configuration; the key `variant` chooses among variants.
        max_macs: Multiply-adds that the small model may have, as a part of the dense model's: a
            trial with more is never the best. None: any.
        pruner: Which trials are stopped early: "median": whose best validation metric so far is
            below the median that the others had after as many epochs; "halving": all but the best
            quarter after `warmup` epochs, after four times as many, and so on; None: none is.
        startup: So many trials are drawn at random, and by the median none is stopped before.
        warmup: Epochs that every trial may take.
    """

    trials: int
    space: Mapping[str, Range | Choices]
    max_macs: float | None = None
    pruner: str | None = "median"
    startup: int = 5
    warmup: int = 3

    def __post_init__(self) -> None:
        for name in ("trials", "startup", "warmup"):
            whole(name, getattr(self, name), 1)
        if self.max_macs is not None:
            positive("max_macs", self.max_macs)
        if self.pruner not in (*PRUNERS, None):
            raise PruneError(f"pruner (={self.pruner!r}) must be {', '.join(PRUNERS)} or null")

    def examples(self) -> Iterator[dict[str, Value]]:
        """Yield settings that have each end of each range, and each choice, at least once."""
        values = {key: each.examples for key, each in self.space.items()}
        for i in range(max(map(len, values.values()))):
            yield {key: each[i % len(each)] for key, each in values.items()}


def options(settings: Mapping[str, Value]) -> list[str]:
    """Return the options of a run with some settings."""
    texts = {key: each if isinstance(each, str) else repr(each) for key, each in settings.items()}
    return [part for key, text in texts.items() for part in (f"--{key}", text)]


def read(args: Sequence[str]) -> tuple[SearchConfig, dict[str, Any]]:
    """Read what the files of a command line say of the search; of several the last one counts.

    Args:
        args: Those of `branchprune run`; the files can be read.

    Returns:
        The configuration, and the section as it stands in the file.

    Raises:
        PruneError: No file has the section, or a key or value is wrong; both are named.
    """
    words = files_named(args)
    paths = [Path(value) for word, value in pairwise(words) if word == FILE]
    files = [file.path for path in paths if path.is_file() for file in read_file(path).family]
    there = {path: read_settings(path) for path in files}
    holding = [path for path, settings in there.items() if OF_SEARCH in settings]
    if not holding:
        raise PruneError(f"{', '.join(map(str, paths)) or 'no file'}: {OF_SEARCH} is missing")
    section = there[holding[-1]][OF_SEARCH]
    try:
        return _search(section), section
    except PruneError as error:
        raise PruneError(f"{holding[-1]}: {OF_SEARCH}.{error}") from error


def _search(section: Any) -> SearchConfig:
    known = [field.name for field in fields(SearchConfig)]
    if not isinstance(section, dict) or {*section} - {*known}:
        unknown = next(iter({*section} - {*known})) if isinstance(section, dict) else section
        raise PruneError(f"{unknown} is no key; known are {', '.join(known)}")
    for key in ("trials", "space"):
        if key not in section:
            raise PruneError(f"{key} is missing")
    space = section["space"]
    if not isinstance(space, dict) or not space:
        raise PruneError(f"space (={space!r}) must be a mapping by key of a run, of at least one")
    return SearchConfig(**section | {"space": {key: _values(key, space[key]) for key in space}})


def _values(key: Any, value: Any) -> Range | Choices:
    """Return the values of a key, which is named where they are wrong."""
    if str(key).partition(".")[0] not in SEARCHED:
        raise PruneError(
            f"space.{key}: trials share the dense model, and all but {', '.join(SEARCHED)}"
        )
    given = {*value} if isinstance(value, dict) else set()
    if given == {"choices"}:
        return _choices(f"space.{key}", value["choices"])
    if given - {"log"} != {"low", "high"} or not isinstance(value.get("log", False), bool):
        raise PruneError(
            f"space.{key} (={value!r}) must be {{low: …, high: …}}, perhaps with log: true, or "
            "{choices: […]}"
        )
    for name in ("low", "high"):
        end = value[name]
        if type(end) not in (int, float) or not math.isfinite(end):
            raise PruneError(f"space.{key}.{name} (={end!r}) must be a finite number")
    found = Range(**value)
    if found.low >= found.high:
        raise PruneError(f"space.{key}: low (={found.low}) must be below high (={found.high})")
    if found.log and found.low <= 0:
        raise PruneError(f"space.{key}: with log, low (={found.low}) must be positive")
    return found


def _choices(key: str, value: Any) -> Choices:
    if not isinstance(value, list) or not value:
        raise PruneError(f"{key}.choices (={value!r}) must be a list of at least one")
    texts: list[Value] = [each if isinstance(each, str) else json.dumps(each) for each in value]
    if len({*texts}) < len(texts):
        raise PruneError(f"{key}.choices (={value!r}) has one twice")
    return Choices(texts)

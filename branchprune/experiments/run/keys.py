"""Keys of a configuration: those that do not exist, and those that must hold something else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from branchprune.errors import PruneError
from branchprune.experiments.variants import read_file
from branchprune.experiments.yaml_text import check_yaml

MOVED = {
    **dict.fromkeys(("keep", "exclude", "multiple_of", "inside", "opaque"), "widths"),
    **dict.fromkeys(("calibration", "fit"), "criterion"),
    **dict.fromkeys(("hold", "final_hold", "order", "monitor", "monitor_mode"), "blend"),
    **dict.fromkeys(("restarts", "learning_rate", "restore_best", "thaw_at"), "blend"),
    **dict.fromkeys(("levels", "mixing", "matching", "average", "recalibrate"), "blend"),
    "pruner": "torch_pruning",
}
"""Sections into which keys of `prune` have moved."""
RENAMED = {"init": "criterion.name", "budget": "cost"}
ONLY_OPTIONS = {"config", "variant"}
"""What a command line has, and a file has not."""
NOTES = {
    "levels": " (and `levels: null` is `cut: {}`)",
    "average": ", and that of the small model prune.finetune.average",
}


def check_keys(
    args: Sequence[str],
    options: Collection[str],
    sections: Collection[str],
    optional: Collection[str],
) -> None:
    """Raise for a key that does not exist or is wrongly null, in files and on a command line.

    Args:
        args: As `["--config", "a.yaml", "--prune.finetune.epochs", "3"]`. Of a file its bases and
            variants are looked at, too.
        options: Every key that has a value, with dots; what is within a value is not looked at.
        sections: Every key that has a mapping of others.
        optional: Those that may be null.

    Raises:
        PruneError: It names the file, the key, and its new name or the nearest key, or what it
            must be.
    """
    known = {*options, *sections}
    for place, key, value in _given(args, sections):
        allowed = known if place == "--" else known - ONLY_OPTIONS
        if key not in allowed and not _within_value(key, options, sections):
            raise PruneError(f"{place}{key} {_instead(key, allowed)}")
        if value is None and key in known - {*optional}:
            raise PruneError(f"{place}{key} must not be null: give a value, or leave it out")
        if value is not None and key in sections and not isinstance(value, Mapping):
            raise PruneError(f"{place}{key} (={value!r}) {_mapping(key, options, optional)}")


def _mapping(section: str, options: Collection[str], optional: Collection[str]) -> str:
    """Say what a section must be."""
    paths = [key.rpartition(".") for key in sorted(options) if not key.endswith(("help", "+"))]
    within = ", ".join(name for around, _, name in paths if around == section)
    return f"must be a mapping{within and f' of {within}'}{', or null' * (section in optional)}"


def _given(args: Sequence[str], sections: Collection[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield each key that is given: where, its name, and its value."""
    for i, argument in enumerate(args):
        if not argument.startswith("--"):
            continue
        key, separator, value = argument.removeprefix("--").partition("=")
        if not separator:
            value = next(iter(args[i + 1 : i + 2]), "")
        if key == "config":
            for place, content in _contents(value):
                yield from ((place, *each) for each in _keys(content, "", sections))
        else:
            parsed = value if key in ONLY_OPTIONS else _parsed(key, value)
            yield from (("--", *each) for each in _keys(parsed, key, sections))


def _keys(value: Any, path: str, sections: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested sections, with their values."""
    if path:
        yield path, value
    if isinstance(value, Mapping) and (not path or path in sections):
        for name, each in value.items():
            yield from _keys(each, f"{path}.{name}" if path else str(name), sections)


def _within_value(key: str, options: Collection[str], sections: Collection[str]) -> bool:
    parts = key.split(".")
    around = (".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1))
    found = next((each for each in around if each in options or each in sections), None)
    return found is not None and found not in sections


def _instead(key: str, known: Collection[str]) -> str:
    """Say what to write instead of a key that does not exist."""
    section, _, rest = key.partition(".")
    old, _, within = rest.partition(".")
    if section == "prune" and old in {**MOVED, **RENAMED}:
        new = RENAMED.get(old) or f"{MOVED[old]}.{old}"
        return f"is now prune.{'.'.join(filter(None, (new, within)))}{NOTES.get(old, '')}"
    keys = [each for each in known if not each.endswith(("help", "+"))]
    return f"is no key; the nearest is {get_close_matches(key, keys, n=1, cutoff=0.0)[0]}"


def _contents(path: str) -> Iterator[tuple[str, Any]]:
    """Return what a file holds; nothing where it cannot be read, which the parser reports."""
    with suppress(OSError):
        yield from read_file(Path(path)).parts()


def _parsed(key: str, text: str) -> Any:
    """Return the value of an option; the text where it is no YAML, or missing, so no null."""
    try:
        check_yaml(text)
        return yaml.safe_load(text) if text else text
    except PruneError as error:
        raise PruneError(f"--{key}: {error}") from error
    except (yaml.YAMLError, ValueError):
        return text

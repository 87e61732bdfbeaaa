"""Keys of a configuration that do not exist: what they are called now, or the nearest to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from branchprune.errors import PruneError

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
NOTES = {
    "levels": " (and `levels: null` is `cut: {}`)",
    "average": ", and that of the small model prune.finetune.average",
}


def check_keys(args: Sequence[str], known: Collection[str]) -> None:
    """Raise for a key that does not exist, in the files and options of a command line.

    Args:
        args: As `["--config", "a.yaml", "--prune.finetune.epochs", "3"]`.
        known: Every key there is, with dots; what is within them is not looked at.

    Raises:
        PruneError: It names the file, the key, and its new name or the nearest key.
    """
    for place, key in _given(args, known):
        if not _exists(key, known):
            raise PruneError(f"{place}{key} {_instead(key, known)}")


def _given(args: Sequence[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Return each key that is given, and where."""
    for i, argument in enumerate(args):
        if not argument.startswith("--"):
            continue
        key, separator, value = argument.removeprefix("--").partition("=")
        if not separator:
            value = next(iter(args[i + 1 : i + 2]), "")
        if key == "config":
            yield from ((f"{value}: ", each) for each in _keys(_read(value), "", known))
        else:
            yield from (("--", each) for each in _keys(_parsed(value), key, known))


def _keys(value: Any, path: str, known: Collection[str]) -> Iterator[str]:
    """Return the keys of a nested mapping, down to those whose values are values."""
    inner = not path or any(each.startswith(f"{path}.") for each in known)
    if not inner or not isinstance(value, Mapping) or (path and not value):
        if path:
            yield path
        return
    for name, each in value.items():
        yield from _keys(each, f"{path}.{name}" if path else str(name), known)


def _exists(key: str, known: Collection[str]) -> bool:
    parts = key.split(".")
    around = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
    return bool(around & {*known}) or any(each.startswith(f"{key}.") for each in known)


def _instead(key: str, known: Collection[str]) -> str:
    """Say what to write instead of a key that does not exist."""
    section, _, rest = key.partition(".")
    old, _, within = rest.partition(".")
    if section == "prune" and old in {**MOVED, **RENAMED}:
        new = RENAMED.get(old) or f"{MOVED[old]}.{old}"
        return f"is now prune.{'.'.join(filter(None, (new, within)))}{NOTES.get(old, '')}"
    keys = [each for each in known if not each.endswith(("help", "+"))]
    nearest = get_close_matches(key, keys, n=1, cutoff=0.0)
    return f"is no key of a configuration; the nearest is {nearest[0]}"


def _read(path: str) -> Any:
    """Return what a file holds; nothing where it cannot be read, which the parser reports."""
    try:
        return _parsed(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None

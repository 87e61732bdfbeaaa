"""The folder of a run: what is in it, and when it may be replaced."""

from __future__ import annotations

import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from branchprune.errors import PruneError

CONTENT = (
    *("config.yaml", "result.json", "report.html"),
    *("config.yaml.part", "result.json.part", "report.html.part"),
    *("dense", "sparsify", "prune", "finetune", "round_*"),
    *("dense.safetensors", "small.safetensors"),
)
FREE = ("output", "results")
"""Keys of a configuration that may differ where a run continues."""


def check_folder(
    output: Path, overwrite: bool, resumed: str | None = None, command: str = "run"
) -> None:
    """Raise a PruneError if a run may not be written to a folder.

    Args:
        output: The folder.
        overwrite: Whether an earlier run there may be moved away; anything else never is.
        resumed: The configuration, as YAML, of a run there that is to continue, if there is one.
        command: The command that is to continue it.
    """
    if not output.exists():
        place = nearest(output)
        if not place.is_dir():
            raise PruneError(f"output folder {output} cannot be written: {place} is no folder")
        return
    if resumed is not None:
        if not _is_blank(output):
            _check_same(output / "config.yaml", resumed, command)
        return
    if not overwrite:
        raise PruneError(
            f"output folder {output} exists; give another, or --overwrite true, or --resume"
        )
    if not output.is_dir():
        raise PruneError(f"output folder {output} cannot be written: it is a file")
    foreign = sorted(
        path.name
        for path in output.iterdir()
        if not any(fnmatch(path.name, pattern) for pattern in CONTENT)
    )
    if foreign:
        raise PruneError(f"output folder {output} is not a run alone: it holds {foreign[0]}")
    if Path.cwd().resolve().is_relative_to(output.resolve()):
        raise PruneError(f"output folder {output} is where the command runs: it is not replaced")


def nearest(path: Path) -> Path:
    """Return the nearest to a path, of all that it is within, that exists."""
    return next(each for each in path.absolute().parents if each.exists())


def _is_blank(output: Path) -> bool:
    """Return whether a folder is what a kill leaves before the configuration is written."""
    parts = [output / name for name in ("config.yaml", "config.yaml.part")]
    return output.is_dir() and all(
        path in parts and (path == parts[1] or not path.stat().st_size) for path in output.iterdir()
    )


def _check_same(path: Path, resumed: str, command: str) -> None:
    """Raise if a stored configuration says something else than that of a run that continues."""
    if not path.is_file():
        raise PruneError(f"output folder {path.parent} is no run that could be resumed: no {path}")
    before, now = (_flat(yaml.safe_load(text)) for text in (path.read_text(), resumed))
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE and before.get(key) != now.get(key):
            again = [str(path), "--output", str(path.parent), "--resume"]
            raise PruneError(
                f"output folder {path.parent} is a run with other settings: {key} was "
                f"{before.get(key)!r} and is {now.get(key)!r}; to go on with its own: "
                f"{shlex.join(['branchprune', command, *again])}"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted path."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def make_folder(output: Path, resume: bool = False) -> None:
    """Make the folder; an earlier run there is kept as `<name>.previous`.

    Args:
        output: The folder.
        resume: Whether a run there stays where it is.

    Raises:
        PruneError: The folder cannot be written.
    """
    try:
        if output.exists() and not resume:
            previous = output.with_name(f"{output.name}.previous")
            if previous.exists():
                check_folder(previous, overwrite=True)
                shutil.rmtree(previous)
            output.rename(previous)
        output.mkdir(parents=True, exist_ok=resume)
    except OSError as error:
        raise PruneError(f"output folder {output} cannot be written: {error.strerror}") from error

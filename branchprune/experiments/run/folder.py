"""The folder of a run: what is in it, and when it may be replaced."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from branchprune.artifacts.export_formats import SUFFIXES
from branchprune.errors import PruneError
from branchprune.experiments.files import nearest_existing
from branchprune.experiments.run.configuration_digest import OF_DENSE, changed_settings, flat

ENDS = (*SUFFIXES, ".bin", ".failed")
"""Of files for a runtime: OpenVINO has its weights beside the graph."""
STAGE = (
    *("metrics.csv", "metrics.csv.kept", "hparams.yaml", "finished.json"),
    *("last.ckpt", "previous.ckpt", "part.ckpt"),
    *("small.safetensors", "wide.safetensors", "shallow.safetensors"),
    *("events.out.tfevents.*", "branch_alone/events.*", "steps_of_alpha/events.*"),
)
STAGES = (
    *("dense", "depth_blocks", "depth", "widths", "sparsify", "prune", "finetune"),
    "round_[0-9]*",
)
EXPORTED = "export"
"""The folder of what is made for a runtime."""
CONTENT = (
    *("config.yaml", "result.json", "report.html", "dense.safetensors", "small.safetensors"),
    *("small.md", "early.safetensors"),
    *(f"{EXPORTED}/{name}{end}" for name in ("dense*", "small*") for end in ENDS),
    *(f"{stage}/{name}" for stage in STAGES for name in STAGE),
    *("tmp????????/*.safetensors", *(f"{stage}/tmp????????/*.safetensors" for stage in STAGES)),
)
"""Patterns of the files that a run makes; a kill leaves some with `.part` behind the name, and that
of an earlier version some in folders of their own."""
FOLDERS = ("tmp????????", EXPORTED, *STAGES, *(f"{stage}/*" for stage in STAGES))
MAY_DIFFER = ("output", "results")
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
        place = nearest_existing(output)
        if not place.is_dir():
            raise PruneError(f"output folder {output} cannot be written: {place} is no folder")
        return
    if resumed is not None:
        if not _is_blank(output):
            _check_same(output / "config.yaml", resumed, command)
        return
    if not overwrite:
        dry = _is_dry(output)
        way = "--overwrite true" if dry else "--overwrite true, or --resume"
        raise PruneError(
            f"output folder {output} exists{' (a dry run)' * dry}; give another, or {way}"
        )
    if not output.is_dir():
        raise PruneError(f"output folder {output} cannot be written: it is a file")
    foreign = sorted(str(path.relative_to(output)) for path in _foreign(output))
    if foreign:
        raise PruneError(f"output folder {output} is not a run alone: it holds {foreign[0]}")
    if Path.cwd().resolve().is_relative_to(output.resolve()):
        raise PruneError(f"output folder {output} is where the command runs: it is not replaced")


def _is_dry(output: Path) -> bool:
    """Return whether a folder holds a dry run."""
    stored = output / "config.yaml"
    settings = yaml.safe_load(stored.read_text()) if stored.is_file() else None
    return isinstance(settings, dict) and settings.get("fast") is True


def _foreign(output: Path) -> Iterator[Path]:
    """Yield what no run makes in a folder."""
    for path in output.rglob("*"):
        is_folder = path.is_dir() and not path.is_symlink()
        if not _is_known(str(path.relative_to(output)), FOLDERS if is_folder else CONTENT):
            yield path


def _is_known(name: str, patterns: Sequence[str]) -> bool:
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path, or that of which it is a part, is as a pattern says, part by part."""
    parts, patterns = name.split("/"), pattern.split("/")
    if parts[-1].endswith(".part"):  # .NAME.0123abcd.part, or NAME.part
        parts[-1] = re.sub(r"^\.(.*)\.[0-9a-f]{8}$", r"\1", parts[-1].removesuffix(".part"))
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


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
    before, now = (flat(yaml.safe_load(text)) for text in (path.read_text(), resumed))
    later = {part.name for part in path.parent.iterdir() if part.is_dir()} - {"dense"}
    sections = OF_DENSE if command == "dense" and not later else ()
    for key in changed_settings(before, now):
        if key not in MAY_DIFFER and (not sections or key.partition(".")[0] in sections):
            again = [str(path), "--output", str(path.parent), "--resume"]
            raise PruneError(
                f"output folder {path.parent} is a run with other settings: {key} was "
                f"{before.get(key)!r} and is {now.get(key)!r}; to go on with its own: "
                f"{shlex.join(['branchprune', command, *again])}"
            )


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
        _sweep(output)
    except OSError as error:
        raise PruneError(f"output folder {output} cannot be written: {error.strerror}") from error


def _sweep(output: Path) -> None:
    """Delete what a kill has left of files that were not written to their end."""
    for path in output.rglob("*.part"):
        if _is_known(str(path.relative_to(output)), CONTENT):
            path.unlink()

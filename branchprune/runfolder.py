"""The folder of a run: what is in it, and when it may be replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

from branchprune.errors import PruneError

CONTENT = {
    *("config.yaml", "result.json", "report.html"),
    *("dense", "prune", "dense.safetensors", "small.safetensors"),
}


def check_folder(output: Path, overwrite: bool) -> None:
    """Raise a PruneError if a run may not be written to a folder.

    Args:
        output: The folder.
        overwrite: Whether an earlier run there may be moved away; anything else never is.
    """
    if not output.exists():
        return
    if not overwrite:
        raise PruneError(f"output folder {output} exists; give another, or --overwrite true")
    if not output.is_dir():
        raise PruneError(f"output folder {output} cannot be written: it is a file")
    foreign = sorted(path.name for path in output.iterdir() if path.name not in CONTENT)
    if foreign:
        raise PruneError(f"output folder {output} is not a run alone: it holds {foreign[0]}")
    if Path.cwd().resolve().is_relative_to(output.resolve()):
        raise PruneError(f"output folder {output} is where the command runs: it is not replaced")


def make_folder(output: Path) -> None:
    """Make the folder; an earlier run there is kept as `<name>.previous`.

    Raises:
        PruneError: The folder cannot be written.
    """
    try:
        if output.exists():
            previous = output.with_name(f"{output.name}.previous")
            if previous.exists():
                check_folder(previous, overwrite=True)
                shutil.rmtree(previous)
            output.rename(previous)
        output.mkdir(parents=True)
    except OSError as error:
        raise PruneError(f"output folder {output} cannot be written: {error.strerror}") from error

"""The files of an export: they get their names once they are right, and all of them or none."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from branchprune.artifacts.file_format import FileFormat
from branchprune.errors import Failed, PruneError

FAILED = ".failed"
"""How names of files end that compute something else than the model."""


def check_free(path: Path, kind: FileFormat, overwrite: bool) -> None:
    """Raise PruneError for a file that is there and may not be replaced, or cannot be."""
    for file in kind.files(path):
        if file.exists() and not file.is_file():
            raise PruneError(f"path (={str(path)!r}): {file} is no regular file")
        if file.exists() and not overwrite:
            raise PruneError(
                f"path (={str(path)!r}): {file} exists; move it, name another, or set overwrite"
            )
    if not path.parent.is_dir():
        raise PruneError(f"path (={str(path)!r}): there is no folder {path.parent}")


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder in which files are written before they get their names, for a `with` block.

    Raises:
        PruneError: It cannot be made, or something in the block cannot be written.
    """
    try:
        folder = Path(mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield folder
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give_names(parts: tuple[Path, ...], files: tuple[Path, ...]) -> None:
    """Give files their names, the first one last: without it, the others are of no file."""
    if len(files) > 1:
        files[0].unlink(missing_ok=True)
    for part, file in reversed([*zip(parts, files, strict=True)]):
        part.replace(file)


def kept_as_failed(
    found: Mapping[int, float], limit: float, kind: FileFormat, path: Path, part: Path
) -> Failed:
    """Keep files that compute something else under other names; return what is to be raised.

    Args:
        found: For each size of a batch, max |Δ| / max |model's|.
        limit: The largest that is allowed.
        kind: The format.
        path: The file that was to be written.
        part: Where it is.
    """
    files = tuple(file.with_name(file.name + FAILED) for file in kind.files(path))
    give_names(kind.files(part), files)
    size, worst = max(found.items(), key=lambda item: (item[1], -item[0]))
    by = f"by {worst:.2g} of the largest"
    if worst == math.inf:
        by = "in shape, in whole numbers, or in what is infinite or NaN"
    return Failed(
        f"{files[0]}: in {kind.runs_in} its outputs differ from the model's {by} at a batch of "
        f"{size}, and tolerance is {limit:g}"
    )

"""Files that a kill or a full disk leaves readable: whole ones, and JSON objects a line."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from safetensors import SafetensorError

from branchprune.errors import Failed, PruneError
from branchprune.experiments.locks import wait_for_lock

Parsed = TypeVar("Parsed")
SEAL = "crc32"
WHOLE = re.compile(rf'"{SEAL}": "[0-9a-f]{{8}}"}}$')
"""How a line ends that has not broken off."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors that say of themselves that a file could not be written."""


def nearest_existing(path: Path) -> Path:
    """Return a path, or the nearest of the folders around it that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def write_whole(path: Path, text: str) -> None:
    """Write a file at one stroke: it holds what it held before, or all of the text."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is none, or the file is torn or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return unsealed(found) if isinstance(found, dict) else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a checksum of itself."""
    return {**value, SEAL: _checksum(value)}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without its checksum, which older ones do not have.

    Raises:
        ValueError: The checksum is not that of the object.
    """
    bare = {key: each for key, each in value.items() if key != SEAL}
    if value.get(SEAL, (right := _checksum(bare))) != right:
        raise ValueError("it is damaged: its checksum is not that of its content")
    return bare


def _checksum(value: Mapping[str, Any]) -> str:
    return f"{crc32(json.dumps(value).encode()):08x}"


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add an object, on a line of its own even behind a torn one, and whole or not at all.

    Processes that write to one file wait for each other.

    Raises:
        OSError: The file cannot be written.
    """
    with alone_with(path) as file:
        write_line(file, value)


@contextmanager
def alone_with(path: Path) -> Iterator[FileIO]:
    """Open a file of lines for a `with` block; others that do the same wait for its end."""
    with path.open("ab+", buffering=0) as file:
        wait_for_lock(file)
        yield file


def write_line(file: FileIO, value: Mapping[str, Any]) -> None:
    """Add an object to a file of `alone_with`; see `append_line`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    torn = size > 0 and file.read(1) != b"\n"
    line = ("\n" * torn + json.dumps(value) + "\n").encode()
    if file.write(line) < len(line):  # so a disk that becomes full is told, without buffers
        with suppress(OSError):
            file.truncate(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


def parse_lines(path: Path, parse: Callable[[str], Parsed | None]) -> list[Parsed]:
    """Return what the lines of a file hold, without those of which nothing can be parsed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [found for found in map(parse, lines) if found is not None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, in their order; a line that breaks off is left out.

    Raises:
        PruneError: A line is something else, or damaged.
    """
    lines: list[dict[str, Any]] = []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if text.startswith("{") and not WHOLE.search(text):
                continue
            raise PruneError(f"{path}, line {number}: {error}") from error
        if not isinstance(line, dict):
            raise PruneError(f"{path}, line {number}: {text[:40]} is no JSON object")
        try:
            lines.append(unsealed(line))
        except ValueError as error:
            raise PruneError(f"{path}, line {number}: {error}; delete the line") from error
    return lines


@contextmanager
def refusals_named() -> Iterator[None]:
    """Turn any error of the file system in a `with` block into one that names the file.

    Raises:
        PruneError: Something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise PruneError(f"{error.filename} cannot be written: {error.strerror}") from error


@contextmanager
def unwritable_named(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk in a `with` block into one that names the file.

    Args:
        folder: Named where the error does not say which file it was.

    Raises:
        PruneError: Something could not be written.
    """
    try:
        yield
    except Failed as error:
        if "--resume" in str(error):
            raise
        raise Failed(f"{error}; what was written before is kept (--resume continues)") from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        path = getattr(error, "filename", None) or f"output folder {folder}"
        verb = "read or written" if getattr(error, "errno", 0) == errno.EIO else "written"
        reason = getattr(error, "strerror", None) or error
        raise Failed(
            f"{path} cannot be {verb}: {reason}; what was written before is kept "
            "(--resume continues)"
        ) from error

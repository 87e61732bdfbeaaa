"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError

if sys.platform != "win32":
    import fcntl

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""Errors of file systems that have no locks."""
held: set[str] = set()
"""Lock files of this process: the system's locks do not keep a process from itself."""


def wait_for_lock(file: FileIO) -> None:
    """Wait until no other process has an open file locked, and lock it until it is closed.

    Where the system or the file system has no locks, nothing is done.

    Raises:
        OSError: The file system refuses.
    """
    if sys.platform != "win32":
        with _without_locks_ignored():
            fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _without_locks_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run to a folder, during a `with` block.

    The lock is a file beside the folder, which says who holds it. It ends with the process, so that
    the file of a killed one hinders nobody.

    Args:
        folder: The folder of the run, which need not exist.

    Raises:
        PruneError: Another process holds it: which, where and since when; or the file cannot be
            written.
    """
    path = folder.absolute().parent / f".{folder.name}.lock"
    made = [each for each in path.parents if not each.exists()]
    try:
        with _holding(path, folder):
            yield
    finally:
        for each in made:  # of a run that was refused, nothing is left
            with suppress(OSError):
                each.rmdir()


@contextmanager
def _holding(path: Path, folder: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, folder)
    except OSError as error:
        raise PruneError(f"output folder {folder} cannot be written: {error.strerror}") from error
    held.add(str(path))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        held.discard(str(path))
        file.close()


def _acquire(path: Path, folder: Path) -> FileIO:
    """Return the lock file, open and locked; it must not be one that its last owner has deleted."""
    while True:
        if str(path) in held:
            raise _refusal(path, folder)
        file = path.open("ab+", buffering=0)
        if not _try_lock(file):
            file.close()
            raise _refusal(path, folder)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.truncate(0)
                file.write(json.dumps(_me()).encode())
                return file
        file.close()


def _try_lock(file: FileIO) -> bool:
    """Lock a file, if no other process has; a record lock, which workers do not inherit."""
    if sys.platform == "win32":
        return True
    try:
        with _without_locks_ignored():
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _me() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _refusal(path: Path, folder: Path) -> PruneError:
    try:
        by = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {by['pid']} on {by['host']}, since {by['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return PruneError(
        f"output folder {folder} is written by {who}: wait for its end, or give another --output"
    )

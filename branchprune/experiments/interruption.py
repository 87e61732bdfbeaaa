"""Ctrl-C, SIGTERM, a closed pipe: end a command in order, say what is saved and how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PIPE = 13
"""SIGPIPE, which not every system has: Python says instead that the pipe is broken."""
NAMES = {
    signal.SIGINT: "Ctrl-C (SIGINT)",
    signal.SIGTERM: "SIGTERM",
    PIPE: "a closed output (SIGPIPE)",
}
GOES_ON = ("compare", "cost", "search", "zoo")
"""Commands that keep what is done, and go on where they are called again."""


class Interrupted(BaseException):
    """A signal asked the process to end, or nobody reads what it says.

    It is no KeyboardInterrupt and no SystemExit, which Lightning turns into exit statuses of its
    own, and no Exception, which others may catch.

    Args:
        number: The signal.

    Attributes:
        number: The signal.
        folder: Folder of a run that can go on; None: nothing was written.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {NAMES[number]}")
        self.number = number
        self.folder: Path | None = None

    @property
    def status(self) -> int:
        """Exit status by the shell's convention: 130 for SIGINT, 143 for SIGTERM, 141: a pipe."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Interrupted` in a `with` block of the main thread.

    The same signal a second time ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, received = os.getpid(), list[int]()

    def interrupt(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner and number == signal.SIGINT:
            raise KeyboardInterrupt  # a worker that loads data ends by it, silently
        if os.getpid() != owner or number in received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not received:
            received.append(number)
            raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def folder_named(folder: Path, resume: bool) -> Iterator[None]:
    """Note the folder of a run in an interruption of a `with` block, if it is that of this run.

    Args:
        folder: Folder of the run; before it begins, an earlier one may be there.
        resume: Whether the run goes on with that one.
    """
    before = _identity(folder)
    try:
        yield
    except Interrupted as interrupted:
        now = _identity(folder)
        if now is not None and (resume or now != before):
            interrupted.folder = folder
        raise


def _identity(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def how_to_go_on(interrupted: Interrupted, command: str, args: Sequence[str]) -> str:
    """Say what is saved, and the command that goes on.

    Args:
        interrupted: What ended the command.
        command: The command, as "run".
        args: Its arguments.
    """
    again = ["branchprune", command, *args]
    if interrupted.folder is None:
        kept = "what is done is kept" if command in GOES_ON else "nothing was saved"
        how = "to go on" if command in GOES_ON else "to start again"
        return f"{interrupted}\n{kept}\n{how}: {shlex.join(again)}"
    if "--resume" not in again:
        again.append("--resume")
    files = saved(interrupted.folder)
    kept = (
        f"saved in {interrupted.folder}: {', '.join(files)}"
        if files
        else "no checkpoint is written yet"
    )
    if any(file.endswith(".ckpt") for file in files):
        kept += " (the epoch that was interrupted begins anew)"
    return f"{interrupted}\n{kept}\nto go on: {shlex.join(again)}"


def saved(folder: Path) -> list[str]:
    """Return the files, relative to the folder of a run, from which it goes on.

    Those are models, the result, and the last checkpoint of a stage that has not ended.
    """
    found = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    found += [
        path for path in folder.glob("*/last.ckpt") if not path.with_name("finished.json").exists()
    ]
    found += folder.glob("result.json")
    return [str(path.relative_to(folder)) for path in sorted(found, key=_changed)]


def _changed(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)

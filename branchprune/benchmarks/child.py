"""Measurements in a process of their own: starting one, reading its answer, and its memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

PROC = Path("/proc/self")
Record = TypeVar("Record")


def run_child(
    arguments: Sequence[str],
    timeout: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[list[str], str | None]:
    """Run Python in a process of its own, as far as it comes.

    Args:
        arguments: What follows `python`.
        timeout: Seconds that it may take.
        variables: Environment variables that it has beside ours.

    Returns:
        The lines that it printed, and why it failed; None if it did not.
    """
    command, environment = [sys.executable, *arguments], os.environ | (variables or {})
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout, check=False, env=environment
        )
        output, error = done.stdout, _failure(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as expired:
        output, error = expired.stdout or b"", f"took longer than {timeout:g} s"
    return output.decode(errors="replace").splitlines(), error


def parse(line: str, kind: Callable[..., Record]) -> Record | None:
    """Return the record in a line of JSON; None for any other line, and for a torn one.

    Args:
        line: What a process printed, or a line of a file.
        kind: Makes a record of its fields.
    """
    with suppress(json.JSONDecodeError, TypeError):
        return kind(**json.loads(line))
    return None


def _failure(status: int, stderr: bytes) -> str | None:
    """Return why a process failed, given its exit status and error output; None if it did not."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}" + ", as without memory" * (status == -9)
    text = stderr.decode(errors="replace")[-1000:]
    return one_line(text or f"status {status}") if status else None


def one_line(error: str) -> str:
    """Return an error without line breaks and without the folders of one machine."""
    text = re.sub(r"/\S*?/site-packages/", "", " ".join(error.split()))
    return re.sub(r"(?<![\w./])(?:/[\w.+-]+)+/(?=[\w.+-])", "", text)[:1000]


def forget_peak() -> str:
    """Give free memory back and let the peak of resident memory start anew; return its name.

    Linux hands a process the `ru_maxrss` of the one that started it, so VmHWM is preferred.
    """
    give_memory_back()
    try:
        (PROC / "clear_refs").write_text("5")
        resident("VmHWM")
    except (OSError, StopIteration):
        return "ru_maxrss"
    return "VmHWM"


def give_memory_back() -> None:
    """Return what is free to the system: glibc keeps it, in pieces too small for the next copy."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def resident(what: str) -> int:
    """Return resident memory in bytes: VmRSS (now), VmHWM or ru_maxrss (the peak)."""
    status = PROC / "status"
    if what != "ru_maxrss" and status.exists():
        lines: Iterable[str] = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

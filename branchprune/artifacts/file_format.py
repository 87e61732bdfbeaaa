"""What a file format is: how a model gets into a file of it, and what runs that file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from branchprune.runtimes.runtime import FileRuntime, Opened, needed

FLOAT32 = "f32"
INT8, HALF = 8, 16
"""Bits of the numbers in files that are quantised."""


@dataclass(frozen=True)
class Source:
    """What is written into a file.

    Attributes:
        kind: Class of the model.
        program: The model as a graph.
        output: What forward returned, of which outputs have their names.
        header: What the file says of itself.
        options: Those that the format takes and the user has given.
        onnx: It as ONNX, where that is made already, as in 8 bits.
    """

    kind: str
    program: ExportedProgram
    output: Any
    header: Mapping[str, str]
    options: Mapping[str, Any]
    onnx: bytes | None = None

    @property
    def half(self) -> bool:
        """Whether weights are written in half precision."""
        return self.options.get("quantize") == HALF


def float32() -> str:
    """Return what most runtimes compute in."""
    return FLOAT32


@dataclass(frozen=True)
class FileFormat:
    """A file format.

    Attributes:
        name: What users call it.
        title: What messages call it.
        suffix: How names of its files end.
        runs_in: What runs its files.
        others: How names of files beside it end, which belong to it.
        extra: What installs all that it needs, "branchprune[…]"; None: nothing is.
        packages: What has to be imported.
        takes: Names of options that others lack.
        largest: The largest batch of a file that takes any; None: there is none.
        write: Writes a file and those beside it; raises OSError where that fails.
        runtime: What runs a file, with so many threads.
        exactly: Opens a file so that it is run in float32.
        precision: Tells what its runtime computes in on this machine by itself.
        set_by: What makes it float32, where it is another.
    """

    name: str
    title: str
    suffix: str
    runs_in: str
    write: Callable[[Source, Path], None]
    runtime: Callable[[int | None], FileRuntime]
    exactly: Callable[[Path, str], Opened]
    extra: str | None = None
    packages: Sequence[str] = ()
    others: Sequence[str] = ()
    takes: Sequence[str] = ()
    largest: int | None = None
    precision: Callable[[], str] = float32
    set_by: str = ""

    def check_installed(self) -> None:
        """Raise PruneError where a package is missing; the message names the extra."""
        for package in self.packages:
            needed(package, f"format (={self.name!r})", self.extra or "")

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the paths of all files that are written for one."""
        return (path, *map(path.with_suffix, self.others))

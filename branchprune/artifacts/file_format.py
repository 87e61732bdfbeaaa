"""What a file format is: how a model gets into a file of it, and what runs that file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.export import ExportedProgram

from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import Batch
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
        example: An input of it, on the CPU.
        batch: The batch that the file takes.
        output: What forward returned, of which outputs have their names.
        header: What the file says of itself.
        options: Those that the format takes and the user has given.
        onnx: It as ONNX, where that is made already.
    """

    kind: str
    program: ExportedProgram
    example: Example
    batch: Batch
    output: Any
    header: Mapping[str, str]
    options: Mapping[str, Any]
    onnx: bytes | None = None

    @property
    def half(self) -> bool:
        """Whether weights are written in half precision."""
        return self.options.get("quantize") == HALF


class Rounder(Protocol):
    """Rounds a model to 8 bits on images, all its layers or some."""

    @property
    def layers(self) -> Collection[str]:
        """Paths of the layers that can be rounded, and names of operators that are in none."""

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> Source:
        """Return what is written, with layers of 8 bits.

        Args:
            but: Layers that stay float32.
            only: The only layer of 8 bits; None: all that can be are.

        Raises:
            PruneError: The quantiser does not take the model.
        """

    def products(self, source: Source) -> tuple[int, int]:
        """Return how many products of it are of whole numbers, and how many there are."""

    def reference(self, source: Source) -> nn.Module:
        """Return what computes as the file has to, on images (N, …)."""


def float32() -> str:
    """Return what most runtimes compute in."""
    return FLOAT32


def as_it_is(source: Source) -> Source:
    """Return what is written by a format that makes nothing of it in between."""
    return source


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
        bits: Of the numbers that its files can be quantised to.
        rounder: Makes what rounds a model to 8 bits, of the model, of images (N, …) that set ranges
            and of an empty folder.
        largest: The largest batch of a file that takes any; None: there is none.
        prepared: Makes what is the same in all files of a model, before several are written of it.
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
    bits: Sequence[int] = ()
    rounder: Callable[[Source, Tensor, Path], Rounder] | None = None
    largest: int | None = None
    prepared: Callable[[Source], Source] = as_it_is
    precision: Callable[[], str] = float32
    set_by: str = ""

    def check_installed(self) -> None:
        """Raise PruneError where a package is missing; the message names the extra."""
        for package in self.packages:
            needed(package, f"format (={self.name!r})", self.extra or "")

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the paths of all files that are written for one."""
        return (path, *map(path.with_suffix, self.others))

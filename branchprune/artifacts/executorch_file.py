"""Files of ExecuTorch, which phones and small devices run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from branchprune.artifacts.file_format import INT8, FileFormat, Source
from branchprune.runtimes.executorch import ExecuTorch
from branchprune.runtimes.executorch_int8 import ExecuTorchInt8, rounded_products
from branchprune.runtimes.executorch_program import EXTRA, LARGEST_BATCH, executorch_of
from branchprune.runtimes.in_runtime import OnImages
from branchprune.runtimes.runtime import Opened


class ExecuTorchRounder:
    """Rounds a model to 8 bits for XNNPACK; see `Rounder`."""

    def __init__(self, source: Source, images: Tensor, folder: Path) -> None:
        self.source = source
        self.int8 = ExecuTorchInt8(source.program, source.example, images, source.batch)
        self.layers = self.int8.nodes.keys()

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> Source:
        """Return what is written, with layers of 8 bits."""
        return replace(self.source, program=self.int8.rounded(but, only))

    def products(self, source: Source) -> tuple[int, int]:
        """Return how many products of it are of whole numbers, and how many there are."""
        return rounded_products(source.program)

    def reference(self, source: Source) -> nn.Module:
        """Return what computes as the file has to: the graph, in PyTorch."""
        graph = source.program.module(check_guards=False)
        return OnImages(graph.forward, source.example)  # it itself has no modes


def _write(source: Source, path: Path) -> None:
    path.write_bytes(executorch_of(source.program, source.kind, source.header))


def _exactly(path: Path, kind: str) -> Opened:
    return ExecuTorch().opened(path, kind)


EXECUTORCH = FileFormat(
    name="executorch",
    title="ExecuTorch",
    suffix=".pte",
    runs_in=ExecuTorch.name,
    extra=EXTRA,
    packages=("executorch",),
    largest=LARGEST_BATCH,
    bits=(INT8,),
    rounder=ExecuTorchRounder,
    write=_write,
    runtime=ExecuTorch,
    exactly=_exactly,
)
"""Its files hold their header in a method of its own, as a string of JSON: "branchprune"."""

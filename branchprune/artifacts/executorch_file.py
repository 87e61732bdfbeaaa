"""Files of ExecuTorch, which phones and small devices run."""

from __future__ import annotations

from pathlib import Path

from branchprune.artifacts.file_format import FileFormat, Source
from branchprune.runtimes.executorch import ExecuTorch
from branchprune.runtimes.executorch_program import EXTRA, LARGEST_BATCH, executorch_of
from branchprune.runtimes.runtime import Opened


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
    write=_write,
    runtime=ExecuTorch,
    exactly=_exactly,
)
"""Its files hold their header in a method of its own, as a string of JSON: "branchprune"."""

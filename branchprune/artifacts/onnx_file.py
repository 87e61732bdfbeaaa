"""ONNX files, which ONNX Runtime and many others run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from branchprune.artifacts.file_format import HALF, INT8, FileFormat, Source
from branchprune.errors import PruneError
from branchprune.runtimes.in_runtime import InRuntime
from branchprune.runtimes.onnx_fp16 import with_half_weights
from branchprune.runtimes.onnx_int8 import Int8, rounded_operators
from branchprune.runtimes.onnx_model import OPSET, onnx_of
from branchprune.runtimes.onnx_runtime import OnnxRuntime
from branchprune.runtimes.runtime import Opened


def as_onnx(source: Source) -> bytes:
    """Return a model as an ONNX file, which names its outputs as forward does.

    Raises:
        PruneError: ONNX cannot hold it.
    """
    if source.onnx is not None:
        return source.onnx
    names = output_names(source.output, source.program)
    opset = source.options.get("opset", OPSET)
    return onnx_of(source.program, source.kind, opset, names, source.header)


def with_onnx(source: Source) -> Source:
    """Return what is written, with it as ONNX, which takes the exporter a second or more."""
    return replace(source, onnx=as_onnx(source))


def output_names(output: Any, program: ExportedProgram) -> list[str]:
    """Return names for the tensors that forward returns.

    Args:
        output: What it returned: one is called "output", those of a dictionary by their keys, and
            others "output_0", "output_1", …
        program: The graph, in which some names are taken.

    Raises:
        PruneError: Something in it is no tensor.
    """
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    for leaf in leaves:
        if isinstance(leaf, bool | int | float | str | complex):
            raise PruneError(
                f"forward returns {leaf!r}, which is no tensor, and an ONNX file holds none but "
                "these: leave it out, or make a tensor of it"
            )
    names = [f"output_{i}" for i in range(len(leaves))]
    if isinstance(output, Tensor):
        names = ["output"]
    elif isinstance(output, Mapping):
        keys = [str(key) for key, value in output.items() if isinstance(value, Tensor)]
        names = keys if len({*keys} - {""}) == len(leaves) else names
    nodes = {node.name for node in program.graph.nodes if node.op != "output"}
    taken = {*program.state_dict, *program.constants, *nodes}
    called = [f"{name}_out" if name in taken else name for name in names]
    return called if len({*called}) == len(called) else [f"output_{i}" for i in range(len(leaves))]


class OnnxRounder:
    """Rounds a model to 8 bits as ONNX; see `Rounder`."""

    def __init__(self, source: Source, images: Tensor, folder: Path) -> None:
        self.source = source
        self.int8 = Int8(as_onnx(source), images, source.batch, folder)
        self.layers = self.int8.nodes.keys()

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> Source:
        """Return what is written, with layers of 8 bits."""
        return replace(self.source, onnx=self.int8.rounded(but, only))

    def products(self, source: Source) -> tuple[int, int]:
        """Return how many products of it are of whole numbers, and how many there are."""
        return rounded_operators(as_onnx(source))

    def reference(self, source: Source) -> nn.Module:
        """Return what computes as the file has to: ONNX Runtime."""
        opened = OnnxRuntime(threads=1).opened(as_onnx(source), source.kind)
        return InRuntime(opened, source.output, source.batch).eval()


def _write(source: Source, path: Path) -> None:
    content = as_onnx(source)
    path.write_bytes(with_half_weights(content) if source.half else content)


def _exactly(path: Path, kind: str) -> Opened:
    return OnnxRuntime(threads=1).opened(path, kind)


ONNX = FileFormat(
    name="onnx",
    title="ONNX",
    suffix=".onnx",
    runs_in=OnnxRuntime.name,
    extra="onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    takes=("opset",),
    bits=(INT8, HALF),
    rounder=OnnxRounder,
    prepared=with_onnx,
    write=_write,
    runtime=OnnxRuntime,
    exactly=_exactly,
)

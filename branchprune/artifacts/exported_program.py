"""Files of torch.export, which PyTorch runs without the source of the model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import fx, nn

from branchprune.artifacts.file_format import FileFormat, Source
from branchprune.errors import PruneError, first_line
from branchprune.runtimes.captured import quiet
from branchprune.runtimes.pytorch import PyTorch
from branchprune.runtimes.runtime import Opened

HEADER = "branchprune.json"
"""The extra file in a program's file that holds its header."""
TRACES = ("stack_trace", "source_fn_stack", "from_node")
"""What nodes remember of the code that made them."""


def _write(source: Source, path: Path) -> None:
    program = source.program
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            _clear(module)
    with quiet():
        program.example_inputs = None  # which are the user's, and not needed to run it
        extra = {HEADER: json.dumps(dict(source.header))}
        content = io.BytesIO()  # torch's own way into a file ends the process on a full disk
        try:
            torch.export.save(program, content, extra_files=extra)
        except Exception as error:  # whatever its parts raise
            raise PruneError(
                f"{source.kind} cannot be exported to torch.export: {first_line(error)}"
            ) from error
    path.write_bytes(content.getvalue())


def _clear(module: nn.Module) -> None:
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        for key in TRACES:
            node.meta.pop(key, None)


def _exactly(path: Path, kind: str) -> Opened:
    with quiet():
        return PyTorch(threads=1).opened(path, kind)


TORCH_EXPORT = FileFormat(
    name="torch-export",
    title="torch.export",
    suffix=".pt2",
    runs_in=PyTorch.name,
    write=_write,
    runtime=PyTorch,
    exactly=_exactly,
)

"""Files of OpenVINO: the graph in XML, and its weights beside it. They are made from ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from branchprune.artifacts.file_format import FLOAT32, HALF, INT8, FileFormat, Source
from branchprune.artifacts.onnx_file import OnnxRounder, as_onnx, with_onnx
from branchprune.errors import PruneError
from branchprune.runtimes.openvino import PRECISION, OpenVino, telling_line
from branchprune.runtimes.runtime import Opened, needed

SECTION = "branchprune"
"""Of the runtime information in a file, which holds its header."""


def _write(source: Source, path: Path) -> None:
    openvino = needed("openvino", "OpenVINO", "openvino")
    content = as_onnx(source)
    try:
        read = openvino.Core().read_model(content)  # unlike convert_model, without telemetry
    except Exception as error:  # of OpenVINO's own classes
        raise PruneError(
            f"{source.kind} cannot be exported to OpenVINO: {telling_line(error)}"
        ) from error
    _check_inputs(read, content)
    for key, value in source.header.items():
        read.set_rt_info(value, [SECTION, key])
    try:
        openvino.save_model(read, str(path), compress_to_fp16=source.half)
    except Exception as error:
        raise OSError(telling_line(error)) from error


def _check_inputs(read: Any, content: bytes) -> None:
    """Raise PruneError for inputs that forward does not use: OpenVINO drops them in silence."""
    graph = needed("onnx", "OpenVINO", "onnx").load_model_from_string(content).graph
    used = {each.any_name for each in read.inputs}
    if unused := [each.name for each in graph.input if each.name not in used]:
        raise PruneError(
            f"forward does not use {', '.join(unused)}, and OpenVINO keeps no such input: leave it "
            "out of the example"
        )


def _exactly(path: Path, kind: str) -> Opened:
    return OpenVino(threads=1).opened(path, kind, FLOAT32)


def _precision() -> str:
    return OpenVino(threads=1).own_precision()


OPENVINO = FileFormat(
    name="openvino",
    title="OpenVINO",
    suffix=".xml",
    runs_in=OpenVino.name,
    others=(".bin",),
    extra="openvino",
    packages=("onnx", "onnxscript", "openvino"),
    write=_write,
    bits=(INT8, HALF),
    rounder=OnnxRounder,
    prepared=with_onnx,
    runtime=OpenVino,
    exactly=_exactly,
    precision=_precision,
    set_by=f"{PRECISION}={FLOAT32}",
)

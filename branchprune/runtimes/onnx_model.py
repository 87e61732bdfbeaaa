"""A model as ONNX, in memory: that of a whole network, or of a single layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call
from branchprune.graph.layers import has_own_forward
from branchprune.runtimes.captured import captured, quiet
from branchprune.runtimes.runtime import needed

OPSET = 20
OLDEST = 18
"""The least opset that torch's exporter writes; of an earlier one it makes this in silence."""
IR_VERSION = 9
"""Of ONNX files: the one that came with the opset, which runtimes of some age read."""
FLOAT = 1
"""ONNX's number of float32."""
LARGEST = 2**31 - 1
"""Bytes that one file of protocol buffers holds."""
OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='(.+?)'")


def onnx_model(model: nn.Module, example: Example) -> bytes:
    """Return a model in evaluation mode as an ONNX file.

    Args:
        model: The model; it is not changed.
        example: Its inputs; their sizes are fixed in the file.

    Raises:
        PruneError: It cannot be exported, or a package is missing.
    """
    needed("onnx", "ONNX", "onnx")
    check_float32(model)
    layer = _layer(model, example)
    if layer is not None:
        return layer
    return onnx_of(captured(model, example), type(model).__name__)


def check_float32(model: nn.Module) -> None:
    """Raise PruneError for a model with parameters of another type than float32."""
    types = {str(each.dtype) for each in model.parameters() if each.is_floating_point()}
    if others := sorted(types - {"torch.float32"}):
        kind = type(model).__name__
        raise PruneError(
            f"{kind} has parameters of {', '.join(others)}, and files have float32: .float()"
        )


def onnx_of(
    program: ExportedProgram,
    kind: str,
    opset: int = OPSET,
    outputs: Sequence[str] | None = None,
    header: Mapping[str, str] | None = None,
) -> bytes:
    """Return a graph of torch.export as an ONNX file, without traces of where it was made.

    Args:
        program: The graph.
        kind: What it is of, for messages.
        opset: Version of ONNX's operators.
        outputs: Names of its outputs; None: those of operators.
        header: What the file says of itself, as `metadata_props`.

    Raises:
        PruneError: An operator is not known, there is no such opset, or it is above 2 GB.
    """
    needed("onnxscript", "ONNX", "onnx")
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
            assert made is not None
            proto = made.model_proto
        except Exception as error:  # the exporter raises whatever its parts do
            raise PruneError(f"{kind} cannot be exported to ONNX: {_reason(error)}") from error
    written = {each.domain: each.version for each in proto.opset_import}.get("")
    if written != opset:
        raise PruneError(
            f"opset (={opset}) is none that the installed onnx knows: torch made {written} of it"
        )
    if proto.ByteSize() > LARGEST:
        raise PruneError(f"{kind} takes {proto.ByteSize()} bytes, and an ONNX file holds 2 GB")
    without_traces(proto)
    for key, value in (header or {}).items():
        proto.metadata_props.add(key=key, value=value)
    found: bytes = proto.SerializeToString()
    return found


def without_traces(message: Any) -> None:
    """Take lines of code, paths and names of modules out of all that a message contains."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                without_traces(each)


def _reason(error: BaseException) -> str:
    """Return in a line what an error of the exporter comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    if operator := OPERATOR.search(str(error)):
        return f"ONNX has nothing for the operator {operator[1]}"
    return first_line(error)


def _layer(model: nn.Module, example: Example) -> bytes | None:
    """Return the file of a single convolution or fully connected layer; None: it is none such.

    The exporter takes a second for each, and tables of latencies need hundreds of them.
    """
    known = (nn.modules.conv._ConvNd, nn.Linear)
    if not isinstance(model, known) or has_own_forward(model) or not isinstance(example, Tensor):
        return None
    if example.dtype != torch.float32:
        return None
    if isinstance(model, nn.Linear):
        return _file(example, model, *_linear(model, example))
    if not isinstance(model.padding, tuple) or model.padding_mode != "zeros":
        return None
    return _file(example, model, *_convolution(model))


def _convolution(layer: nn.modules.conv._ConvNd) -> tuple[list[Any], list[Tensor]]:
    helper = needed("onnx.helper", "ONNX", "onnx")
    assert isinstance(layer.padding, tuple)
    named: dict[str, Any] = {
        "kernel_shape": [*layer.kernel_size],
        "strides": [*layer.stride],
        "pads": [*layer.padding, *layer.padding],
        "dilations": [*layer.dilation],
        "group": layer.groups,
    }
    if layer.transposed:
        named["output_padding"] = [*layer.output_padding]
    weights = [layer.weight] + ([] if layer.bias is None else [layer.bias])
    names = ["x", *(f"w{i}" for i in range(len(weights)))]
    kind = "ConvTranspose" if layer.transposed else "Conv"
    return [helper.make_node(kind, names, ["y"], **named)], weights


def _linear(layer: nn.Linear, x: Tensor) -> tuple[list[Any], list[Tensor]]:
    helper = needed("onnx.helper", "ONNX", "onnx")
    weights = [layer.weight.t()] + ([] if layer.bias is None else [layer.bias])
    if x.dim() == 2:
        return [helper.make_node("Gemm", ["x", "w0", "w1"][: 1 + len(weights)], ["y"])], weights
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["z" if layer.bias is not None else "y"])]
    if layer.bias is not None:
        nodes.append(helper.make_node("Add", ["z", "w1"], ["y"]))
    return nodes, weights


def _file(x: Tensor, layer: nn.Module, nodes: list[Any], weights: list[Tensor]) -> bytes:
    helper = needed("onnx.helper", "ONNX", "onnx")
    arrays = needed("onnx.numpy_helper", "ONNX", "onnx")
    with torch.no_grad():
        y: Tensor = call(layer, x)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", FLOAT, [*x.shape])],
        [helper.make_tensor_value_info("y", FLOAT, [*y.shape])],
        [
            arrays.from_array(weight.detach().cpu().contiguous().numpy(), f"w{i}")
            for i, weight in enumerate(weights)
        ],
    )
    opset = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    found: bytes = made.SerializeToString()
    return found

"""A model as ONNX, in memory: that of a whole network, or of a single layer."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example, call, copied, example_inputs, on_device
from branchprune.graph.layers import has_own_forward
from branchprune.runtimes.runtime import needed

OPSET = 20
IR_VERSION = 9
"""Of ONNX files: the one that came with the opset, which runtimes of some age read."""
FLOAT = 1
"""ONNX's number of float32."""


def onnx_model(model: nn.Module, example: Example) -> bytes:
    """Return a model in evaluation mode as an ONNX file.

    Args:
        model: The model; it is not changed.
        example: Its inputs; their sizes are fixed in the file.

    Raises:
        PruneError: It cannot be exported, or a package is missing.
    """
    needed("onnx", "ONNX", "onnx")
    types = {str(each.dtype) for each in model.parameters() if each.is_floating_point()}
    if others := sorted(types - {"torch.float32"}):
        kind = type(model).__name__
        raise PruneError(
            f"{kind} has parameters of {', '.join(others)}, to ONNX go float32: .float()"
        )
    layer = _layer(model, example)
    return _traced(model, example) if layer is None else layer


def _traced(model: nn.Module, example: Example) -> bytes:
    """Return what torch's exporter makes of a model."""
    needed("onnxscript", "ONNX", "onnx")
    args, kwargs = example_inputs(on_device(example, model))
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                copied(model, sharing=True).eval(),
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            found: bytes = program.model_proto.SerializeToString()
        except Exception as error:  # the exporter raises whatever its parts do
            raise PruneError(
                f"{type(model).__name__} cannot be exported to ONNX: {first_line(error)}"
            ) from error
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the exporter prints and logs to itself, for a `with` block."""
    log = logging.getLogger("torch.onnx")
    before, log.disabled = log.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.disabled = before


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

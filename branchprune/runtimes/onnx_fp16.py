"""ONNX with weights in half precision: half the size, computed in what the runtime computes in."""

from __future__ import annotations

from branchprune.runtimes.onnx_model import FLOAT
from branchprune.runtimes.runtime import needed

LARGEST = 65504.0
"""Of float16."""


def with_half_weights(content: bytes) -> bytes:
    """Return an ONNX model whose float32 constants are float16, each behind a `Cast` to float32.

    Runtimes fold these when they open the file. Numbers beyond float16 become its largest.
    """
    onnx = needed("onnx", "fp16", "onnx")
    arrays = needed("onnx.numpy_helper", "fp16", "onnx")
    model = onnx.load_model_from_string(content)
    graph, casts = model.graph, []
    for weight in graph.initializer:
        if weight.data_type != FLOAT:
            continue
        name, numbers = weight.name, arrays.to_array(weight)
        half = numbers.clip(-LARGEST, LARGEST).astype("float16")
        weight.CopyFrom(arrays.from_array(half, f"{name}_fp16"))
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    found: bytes = model.SerializeToString()
    return found

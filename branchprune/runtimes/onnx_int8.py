"""ONNX in whole numbers of 8 bits: weights and activations rounded to ranges that images show."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from branchprune.errors import PruneError
from branchprune.runtimes.batch import Batch
from branchprune.runtimes.quantizers import calibration_batches, quantising
from branchprune.runtimes.runtime import needed

WEIGHT = ".weight"
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that take most of the time."""
MOVED = (
    *("Concat", "DepthToSpace", "Flatten", "Gather", "GatherElements", "MaxPool", "Pad", "Reshape"),
    *("Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze"),
)
"""Operators that hand on numbers which are rounded already."""


class Int8:
    """Rounds an ONNX model to 8 bits, all its layers or some.

    Static quantisation of ONNX Runtime: activations become unsigned whole numbers between the least
    and the largest that the images have shown, weights signed ones with a scale for each output
    channel. `QuantizeLinear` and `DequantizeLinear` stand around each operator (QDQ), of which ONNX
    Runtime and OpenVINO make operators of whole numbers. Norms are folded before. Processors of x86
    without VNNI may saturate in the sums of such products.

    Args:
        content: The model, float32.
        images: What its only input is shown (N, …), float32, from which ranges are taken.
        batch: The batch that the file takes.
        folder: An empty folder, for what the quantiser writes.

    Attributes:
        nodes: Names of the operators that can be rounded by the path of the layer; of those that
            forward calls as functions, by their own name.

    Raises:
        PruneError: The model has several inputs, or the quantiser does not take it.
    """

    def __init__(self, content: bytes, images: Tensor, batch: Batch, folder: Path) -> None:
        self.onnx = needed("onnx", "INT8", "onnx")
        prepare = needed("onnxruntime.quantization.shape_inference", "INT8", "onnx")
        self.batches = calibration_batches(images, batch)
        self.prepared, self.made = folder / "prepared.onnx", folder / "int8.onnx"
        self.ranges = folder / "ranges.json"
        model = self.onnx.load_model_from_string(content)
        self.header = {each.key: each.value for each in model.metadata_props}
        self.inputs = [each.name for each in model.graph.input]
        if len(self.inputs) != 1:
            raise PruneError(
                f"quantize (=8) takes models of one input, and this has {', '.join(self.inputs)}"
            )
        with quantising("ONNX Runtime"):
            prepare.quant_pre_process(model, str(self.prepared))
            model = self.onnx.load(str(self.prepared))
            self.nodes = _named(model)
            self.onnx.save(model, str(self.prepared))

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> bytes:
        """Return the model with layers of 8 bits.

        Args:
            but: Layers that stay float32.
            only: The only layer of 8 bits; None: all that can be are.

        Raises:
            PruneError: The quantiser does not take the model.
        """
        quantize = needed("onnxruntime.quantization", "INT8", "onnx")
        with quantising("ONNX Runtime"):
            quantize.quantize_static(
                str(self.prepared),
                str(self.made),
                _Shown(self.inputs[0], iter(self.batches)),
                quant_format=quantize.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantize.QuantType.QUInt8,
                weight_type=quantize.QuantType.QInt8,
                nodes_to_quantize=None if only is None else self.nodes[only],
                nodes_to_exclude=[name for layer in but for name in self.nodes[layer]],
                calibration_cache_path=str(self.ranges),
            )
        return self._described(self.onnx.load(str(self.made)))

    def _described(self, model: Any) -> bytes:
        """Return a file with the header of the model, and no more than it needs."""
        used = {node.domain for node in model.graph.node} | {""}
        needless = [each for each in model.opset_import if each.domain not in used]
        for each in needless:
            model.opset_import.remove(each)
        del model.metadata_props[:]
        for key, value in self.header.items():
            model.metadata_props.add(key=key, value=value)
        found: bytes = model.SerializeToString()
        return found


@dataclass
class _Shown:
    """Gives the quantiser one batch after the other, by the name of the input."""

    name: str
    batches: Iterator[Tensor]

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None: there are no more."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch.numpy()}


def rounded_operators(content: bytes) -> tuple[int, int]:
    """Return how many products of an ONNX model are of whole numbers, and how many there are."""
    graph = needed("onnx", "INT8", "onnx").load_model_from_string(content).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    linear = [node.input[:2] for node in graph.node if node.op_type in LINEAR]
    whole = [all(made.get(name) == "DequantizeLinear" for name in inputs) for inputs in linear]
    return sum(whole), len(linear)


def _named(model: Any) -> dict[str, list[str]]:
    """Give each operator a name; return those of each layer that can be rounded."""
    registry = needed("onnxruntime.quantization.registry", "INT8", "onnx")
    known = {*registry.QDQRegistry, *registry.QLinearOpsRegistry}
    weights = {each.name for each in model.graph.initializer if each.name.endswith(WEIGHT)}
    found: dict[str, list[str]] = {}
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
        own = [name.removesuffix(WEIGHT) for name in node.input if name in weights]
        if node.op_type in known and node.op_type not in MOVED:
            found.setdefault(own[0] if own else node.name, []).append(node.name)
    return found

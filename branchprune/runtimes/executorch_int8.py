"""A graph of torch.export in whole numbers of 8 bits, of which XNNPACK has kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import Batch
from branchprune.runtimes.captured import captured, quiet
from branchprune.runtimes.executorch_program import EXTRA
from branchprune.runtimes.in_runtime import OnImages
from branchprune.runtimes.quantizers import calibration_batches, quantising
from branchprune.runtimes.runtime import needed

WEIGHT = ".weight"
MODES = "torchao.quantization.pt2e"
PT2E = f"{MODES}.quantize_pt2e"
ANNOTATION = f"{MODES}.quantizer.quantizer"
aten = torch.ops.aten
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding),
    *TRANSPOSED,
)
LINEAR = (*CONVOLUTIONS, aten.linear.default)
"""Operators that take most of the time."""
FLOAT = (aten.matmul.default, aten.bmm.default)
"""Those of them that XNNPACK has not in whole numbers."""
OTHERS = (
    *(aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default),
    *(aten.add_.Tensor, aten.mul_.Tensor),
)
"""Other operators that are rounded."""
FINEST = 2.0**-16
"""The smallest step of a weight. ExecuTorch's 2 ** -12 leaves weights below 0.001 with 8 levels; of
far smaller ones biases would overflow, whose step is that of products, behind channels of zeros."""
GROUPS = 6
"""Where a transposed convolution has its number of groups, among its arguments."""


class ExecuTorchInt8:
    """Rounds a graph to 8 bits, all its layers or some, for XNNPACK.

    Static quantisation of torchao (PT2E): activations become signed whole numbers, whose range is
    that of a histogram of what the images have shown, weights have a scale for each output channel.
    Norms are folded before.

    Args:
        program: The graph of a model of one input, float32.
        example: An input of it.
        images: What it is shown (N, …), float32, from which ranges are taken.
        batch: The batch that the file takes.

    Attributes:
        nodes: Names of the operators that can be rounded by the path of the layer; of those without
            weights of their own, by their name, as "add_1()". Those of layers that are called
            several times cannot: torchao would round the weight of one call alone, and XNNPACK
            takes no such layer.
    """

    def __init__(
        self, program: ExportedProgram, example: Example, images: Tensor, batch: Batch
    ) -> None:
        self.program, self.example, self.batch = program, example, batch
        self.batches = calibration_batches(images, batch)
        self.nodes = _named(program)

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> ExportedProgram:
        """Return the graph with layers of 8 bits.

        Args:
            but: Layers that stay float32.
            only: The only layer of 8 bits; None: all that can be are.

        Raises:
            PruneError: A package is missing, or the quantiser does not take the model.
        """
        wanted = self.nodes.keys() - {*but} if only is None else {only}
        pt2e, quantizer = _needed(PT2E), _xnnpack_quantizer()
        with quantising("torchao"):
            module = self.program.module(check_guards=False)
            _keep_norms(module.graph)
            _keep_float32(module.graph, {self.nodes[layer] for layer in wanted})
            module = pt2e.prepare_pt2e(module, quantizer)
            with torch.no_grad():
                for images in self.batches:
                    OnImages(module, self.example)(images)
            module = pt2e.convert_pt2e(module)
            _needed(MODES).allow_exported_model_train_eval(module)
        return captured(module, self.example, self.batch, "ExecuTorch")


def rounded_products(program: ExportedProgram) -> tuple[int, int]:
    """Return how many products of a graph are of whole numbers, and how many there are."""
    nodes = program.graph.nodes
    linear = [node for node in nodes if node.target in LINEAR]
    whole = [all(map(_is_rounded, node.all_input_nodes[:2])) for node in linear]
    return sum(whole), len(linear) + sum(node.target in FLOAT for node in nodes)


def _is_rounded(node: fx.Node) -> bool:
    return "dequantize" in str(node.target)


def _named(program: ExportedProgram) -> dict[str, str]:
    """Return the names of the operators that can be rounded, by the layer that they are of."""
    signature = program.graph_signature
    paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    moved: set[fx.Node] = set()  # what depends on the input
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.name in signature.user_inputs or not moved.isdisjoint(node.all_input_nodes):
            moved.add(node)
        if node.target in OTHERS and all(map(_is_float32, node.all_input_nodes)):
            found[f"{node.name}()"] = node.name
        elif node.target in LINEAR and _groups(node) == 1:
            weight = node.args[1]
            if weight not in moved and len(weight.users) == 1:
                path = paths.get(weight.name, f"{node.name}()")
                found[path.removesuffix(WEIGHT)] = node.name
    return found


def _groups(node: fx.Node) -> Any:
    """Return the groups of a transposed convolution; of others, which may have any, 1."""
    return node.args[GROUPS] if node.target in TRANSPOSED and len(node.args) > GROUPS else 1


def _is_float32(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _keep_float32(graph: fx.Graph, but: Collection[str]) -> None:
    """Have torchao leave all operators of a graph alone that it could round, but those of a name.

    Its filter is for less: concatenations are rounded whatever it says.
    """
    annotation = _needed(ANNOTATION)
    for node in graph.nodes:
        if node.target in (*LINEAR, *FLOAT, *OTHERS) and node.name not in but:
            done = annotation.QuantizationAnnotation(_annotated=True)
            node.meta[annotation.Q_ANNOTATION_KEY] = done


def _keep_norms(graph: fx.Graph) -> None:
    """Have torchao leave the norms of a graph alone that cannot be folded into what they read.

    It folds them whoever else reads that, or has the same weights, and compares those that stay
    with norms of trainings, which takes seconds. `torch.batch_norm` it does not know, of which
    torch.export makes the same again.
    """
    uses = Counter[Any]()
    for node in graph.find_nodes(op="get_attr"):
        uses[node.target] += len(node.users)
    for norm in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        layer, *own = norm.args[:5]
        folded = (*layer.args[1:3], *own) if _can_take_a_norm(layer) else ()
        constant = all(x is None or x.op == "get_attr" for x in folded)
        alone = all(x is None or uses[x.target] == 1 for x in folded[:2])
        if not (folded and constant and alone and own[-1] is not None):
            norm.target = torch.batch_norm


def _can_take_a_norm(layer: fx.Node) -> bool:
    """Return whether torchao makes the same of a layer with a norm behind it by other weights."""
    if layer.target not in LINEAR or len(layer.users) > 1 or _groups(layer) > 1:
        return False
    return layer.target in CONVOLUTIONS or layer.meta["val"].dim() == 2


def _xnnpack_quantizer() -> Any:
    """Return what says to torchao which numbers XNNPACK has in whole ones."""
    package = _needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    config = package.get_symmetric_quantization_config(is_per_channel=True)
    observer = _needed(MODES).PerChannelMinMaxObserver.with_args(eps=FINEST)
    weight = replace(config.weight, observer_or_fake_quant_ctr=observer)
    quantizer = package.XNNPACKQuantizer().set_global(replace(config, weight=weight))
    # The others are of norms that follow products, which are folded here, and they take seconds.
    quantizer.SUPPORTED_PATTERNS = [x for x in quantizer.SUPPORTED_PATTERNS if not x.is_qat]
    return quantizer


def _needed(package: str) -> Any:
    """Return a module of ExecuTorch, or of torchao, which comes with it."""
    with quiet():
        return needed(package, "INT8", EXTRA)

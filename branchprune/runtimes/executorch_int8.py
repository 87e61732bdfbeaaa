"""A graph of torch.export in whole numbers of 8 bits, of which XNNPACK has kernels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import Batch, calibration_batches
from branchprune.runtimes.captured import captured, quiet
from branchprune.runtimes.executorch_program import EXTRA
from branchprune.runtimes.in_runtime import OnImages
from branchprune.runtimes.runtime import needed

WEIGHT = ".weight"
MODES = "torchao.quantization.pt2e"
PT2E = f"{MODES}.quantize_pt2e"
aten = torch.ops.aten
LINEAR = (
    *(aten.conv1d.default, aten.conv2d.default, aten.linear.default, aten.matmul.default),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input),
)
"""Operators that take most of the time."""
OTHERS = (
    *(aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default),
    *(aten.add_.Tensor, aten.mul_.Tensor),
)
"""Other operators that are rounded."""


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
            weights, by their own name.
        called_again: Names of those of layers that are called several times, which stay float32:
            torchao would round the weight of one call alone, and XNNPACK takes no such layer.
    """

    def __init__(
        self, program: ExportedProgram, example: Example, images: Tensor, batch: Batch
    ) -> None:
        self.program, self.example, self.batch = program, example, batch
        self.batches = calibration_batches(images, batch)
        named = _named(program)
        self.nodes = {layer: names for layer, names in named.items() if len(names) == 1}
        self.called_again = {name for names in named.values() if len(names) > 1 for name in names}

    def rounded(self, but: Collection[str] = (), only: str | None = None) -> ExportedProgram:
        """Return the graph with layers of 8 bits.

        Args:
            but: Layers that stay float32.
            only: The only layer of 8 bits; None: all that can be are.

        Raises:
            PruneError: A package is missing, or the quantiser does not take the model.
        """
        left = but if only is None else self.nodes.keys() - {only}
        stay = self.called_again.union(*(self.nodes[layer] for layer in left))
        pt2e, quantizer = _needed(PT2E), _xnnpack_quantizer()
        with _quantising():
            quantizer.set_filter_function(lambda node: node.name not in stay)
            module = pt2e.prepare_pt2e(self.program.module(check_guards=False), quantizer)
            with torch.no_grad():
                for images in self.batches:
                    OnImages(module, self.example)(images)
            module = pt2e.convert_pt2e(module)
            _needed(MODES).allow_exported_model_train_eval(module)
        return captured(module, self.example, self.batch, "ExecuTorch")


def rounded_products(program: ExportedProgram) -> tuple[int, int]:
    """Return how many products of a graph are of whole numbers, and how many there are."""
    linear = [node for node in program.graph.nodes if node.target in LINEAR]
    whole = [all(map(_is_rounded, node.all_input_nodes[:2])) for node in linear]
    return sum(whole), len(linear)


def _is_rounded(node: fx.Node) -> bool:
    return "dequantize" in str(node.target)


def _named(program: ExportedProgram) -> dict[str, list[str]]:
    """Return the names of the operators that can be rounded, by the layer that they are of."""
    weights = program.graph_signature.inputs_to_parameters
    found: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.target in LINEAR or node.target in OTHERS:
            own = [weights[each.name] for each in node.all_input_nodes if each.name in weights]
            layers = [name.removesuffix(WEIGHT) for name in own if name.endswith(WEIGHT)]
            found.setdefault(layers[0] if layers else node.name, []).append(node.name)
    return found


def _xnnpack_quantizer() -> Any:
    """Return what says to torchao which numbers XNNPACK has in whole ones."""
    package = _needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    config = package.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = package.XNNPACKQuantizer().set_global(config)
    # The others are of norms that follow products, which are folded here, and they take seconds.
    quantizer.SUPPORTED_PATTERNS = [x for x in quantizer.SUPPORTED_PATTERNS if not x.is_qat]
    return quantizer


def _needed(package: str) -> Any:
    """Return a module of ExecuTorch, or of torchao, which comes with it."""
    with quiet():
        return needed(package, "INT8", EXTRA)


@contextmanager
def _quantising() -> Iterator[None]:
    """Say of any error of the quantiser that it is its own, for a `with` block."""
    try:
        with quiet():
            yield
    except Exception as error:  # whatever it and its parts raise
        raise PruneError(
            f"quantize (=8): the quantiser of torchao fails: {first_line(error)}"
        ) from error

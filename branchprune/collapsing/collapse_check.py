"""Does the collapsed model compute what the blended one does? Layer by layer, in float64."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.blending.blended import Blended
from branchprune.blending.float64 import KeepsFloat64, widened
from branchprune.blending.projections import LinearEnd
from branchprune.errors import PruneError
from branchprune.graph.hooks import takes_hooks, watched
from branchprune.graph.inputs import (
    Example,
    call,
    tensors,
    training_mode,
    untouched,
    without_constants,
)
from branchprune.graph.structure import LinearLayer, Pieces

TOLERANCE = 1e-10
FLOOR = 1e-3
"""A layer's outputs are compared with their largest, or this share of the largest of all layers,
since outputs that cancel to nearly nothing are nothing but rounding errors."""


def verify(exact: Blended, small: nn.Module) -> tuple[float, list[Tensor]]:
    """Compare every linear layer into which something is folded and the outputs, on the example.

    Args:
        exact: The blended model in float64, every α at 0 or 1, its ends not folded.
        small: The collapsed model in float64.

    Returns:
        The largest relative difference, and the outputs of the blended model.

    Raises:
        PruneError: It is larger than the tolerance; the first layer that differs is named.
    """
    layers = _folded(exact)
    modules = {*called_modules(exact, exact.model), *called_modules(exact, small)}
    with (
        torch.no_grad(),
        training_mode(small, False),
        untouched(small),
        KeepsFloat64(),
        widened(modules),
    ):
        errors, outputs = _compare_run(exact, small)
        for layer in layers.values():
            if layer.name not in errors:
                errors[layer.name] = _compare_alone(exact, small, layer)
    for name in (*layers, "the output"):
        if not errors[name] <= TOLERANCE:
            raise PruneError(
                f"the collapse is not exact: relative error {errors[name]:.1e} in {name}"
            )
    return max(errors.values()), outputs


def _folded(exact: Blended) -> dict[str, LinearLayer]:
    """Return the layers that are folded and whose outputs are all narrow, or all wide."""
    found = {}
    for name, layer in exact.plan.structure.linears.items():
        narrow = folds(exact, layer.outputs)
        live = [piece for piece in layer.outputs if piece.group in exact.plan.pruned]
        whole = not narrow or all(folds(exact, (piece,)) for piece in live)
        if whole and (narrow or folds(exact, layer.inputs)):
            found[name] = layer
    return found


def called_modules(exact: Blended, model: nn.Module) -> list[nn.Module]:
    """Return what reads its parameters itself: modules of a model that are called, and the ends.

    Those with a ScriptModule are left out: it takes no hook, by which they are found.

    Args:
        exact: The blended model.
        model: Its model, or the small one.
    """
    nodes = [node for graph in exact.plan.structure.graphs.values() for node in graph.nodes]
    read = {str(node.target) for node in nodes if node.op == "get_attr"}
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    names = [name for name in called if not any(path.startswith(f"{name}.") for path in read)]
    ends = [module for module in exact.modules() if isinstance(module, LinearEnd)]
    return [m for name in sorted(names) if takes_hooks(m := model.get_submodule(name))] + ends


def folds(exact: Blended, pieces: Pieces | None) -> bool:
    """Return whether a dimension has channels whose branch is folded in."""
    zero = {i for i, a in zip(exact.plan.pruned, exact._alpha, strict=True) if a == 0}
    return any(piece.group in zero for piece in pieces or ())


def _compare_run(exact: Blended, small: nn.Module) -> tuple[dict[str, float], list[Tensor]]:
    """Run both on the example; return the error of every layer that is called, and of the output.

    With it come the blended model's outputs. Those of its layers are kept, and those of the small
    one's are compared as they come.
    """
    layers, inside = _folded(exact), exact.plan.structure.inside
    example, program = _example_in_float64(exact), exact.program(training=False, fold=False)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    errors: dict[str, float] = {}

    def keep(name: str, output: Tensor) -> None:
        kept[name].append(output)

    def compare(name: str, output: Tensor) -> None:
        error = difference(kept[name].pop(0), output, floor) if kept[name] else float("inf")
        errors[name] = _worse(error, errors.get(name, 0.0))

    wide = {
        name: (exact.reduce if folds(exact, layer.outputs) else exact.model).get_submodule(name)
        for name, layer in layers.items()
    }
    with watched(wide, keep):
        expected = tensors(call(exact, example, partial(program, exact)))
    every = [*expected, *(output for outputs in kept.values() for output in outputs)]
    floor = FLOOR * max((_largest(tensor) for tensor in every), default=0.0)
    called = [name for name, outputs in kept.items() if outputs]
    with watched({name: small.get_submodule(name) for name in called}, compare):
        found = tensors(call(small, example, small.get_submodule(inside)))
    errors["the output"] = 0.0
    for a, b in zip(expected, found, strict=True):
        errors["the output"] = _worse(difference(*_finite(a, b), 0.0), errors["the output"])
    return errors, expected


def _compare_alone(exact: Blended, small: nn.Module, layer: LinearLayer) -> float:
    """Compare a layer that evaluation has no need of, such as a head for training, on noise."""
    wide, narrow = exact.model.get_submodule(layer.name), small.get_submodule(layer.name)
    x = _noise_for(narrow)
    inside = exact.expand.get_submodule(layer.expand)(x) if folds(exact, layer.inputs) else x
    expected = wide(inside)
    if folds(exact, layer.outputs):
        expected = exact.reduce.get_submodule(layer.name)(expected)
    return difference(expected, narrow(x), 0.0)


def _noise_for(layer: nn.Module) -> Tensor:
    """Return an input that is large enough for a layer's kernel and padding."""
    generator = torch.Generator().manual_seed(0)
    sizes: list[int] = []
    if not isinstance(layer, nn.Linear):
        kernel, dilation, padding = layer.kernel_size, layer.dilation, layer.padding
        assert isinstance(kernel, tuple) and isinstance(dilation, tuple)
        pads = padding if isinstance(padding, tuple) else (0,) * len(kernel)
        sizes = [
            2 + max(d * (k - 1), 2 * p) for k, d, p in zip(kernel, dilation, pads, strict=True)
        ]
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    assert isinstance(width, int)
    return torch.randn(2, width, *sizes, generator=generator, dtype=torch.float64)


def _worse(a: float, b: float) -> float:
    return a if a != a or a > b else b


def _largest(tensor: Tensor) -> float:
    counts = tensor.is_floating_point() and tensor.numel()
    return float(tensor.abs().nan_to_num(0.0, 0.0).max()) if counts else 0.0


def _finite(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return two outputs with 0 wherever forward makes both infinite alike, or no numbers."""
    if expected.shape != found.shape or bool(expected.isfinite().all()):
        return expected, found
    alike = (expected == found) | (expected.isnan() & found.isnan())
    both = alike & ~expected.isfinite()
    return expected.masked_fill(both, 0.0), found.masked_fill(both, 0.0)


def difference(expected: Tensor, found: Tensor, floor: float) -> float:
    """Return the largest difference over the largest expected number, or over the floor."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.is_floating_point() and not expected.is_complex():
        expected, found = expected.double(), found.double()
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp_min(max(floor, torch.finfo(expected.dtype).tiny))
    return float((expected - found).abs().max() / scale)


def _example_in_float64(exact: Blended) -> Example:
    """Return the example in float64 on the CPU; a constant one is replaced by noise."""

    def convert(x: Tensor) -> Tensor:
        return x.detach().to("cpu", torch.float64) if x.is_floating_point() else x.cpu()

    example: Example = tree_map_only(Tensor, convert, exact.plan.example)
    return without_constants(example)

"""What a plan saves: channels, parameters and multiply-adds before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED
from branchprune.graph.structure import Pieces, Structure, TwinLayer, Work, size_of


@dataclass(frozen=True)
class Cost:
    """Size of a model: output channels of its layers, parameters, multiply-adds for one example."""

    channels: int
    params: int
    macs: int


@dataclass(frozen=True)
class Amount:
    """Parameters or multiply-adds of a module, which shrink with the widths along some axes.

    Attributes:
        module: Path of the module.
        params: Number of parameters.
        macs: Multiply-adds for one example; of a part of a layer they need not be whole.
        axes: What the channels along each axis are made of; None where nothing is known of them.
    """

    module: str
    params: int = 0
    macs: float = 0
    axes: tuple[Pieces | None, ...] = ()

    def share(self, kept: Sequence[int]) -> float:
        """Return the share of it that stays when each group keeps so many channels."""
        return prod(size_of(axis, kept) / size_of(axis) for axis in self.axes if axis)


def costs(model: nn.Module, structure: Structure, kept: Sequence[int]) -> tuple[Cost, Cost]:
    """Return channels, parameters and MACs before and, by the widths, after.

    Args:
        model: The model.
        structure: Its structure.
        kept: The width that each group keeps.
    """
    all_amounts = [*amounts(model, structure)]
    outputs = [
        *(layer.outputs for layer in structure.linears.values()),
        *(layer.outputs for layer in structure.twins.values()),
        *(parameter.outputs for parameter in structure.parameters.values()),
    ]
    left_out = sum(cost.channels for cost in costs_of_unseen(model, structure).values())

    def cost(kept: Sequence[int] | None) -> Cost:
        shares = [1.0 if kept is None else amount.share(kept) for amount in all_amounts]
        sized = [*zip(all_amounts, shares, strict=True)]
        return Cost(
            sum(size_of(pieces, kept) for pieces in outputs) + left_out,
            round(sum(amount.params * share for amount, share in sized)),
            round(sum(amount.macs * share for amount, share in sized)),
        )

    return cost(None), cost(kept)


def amounts(model: nn.Module, structure: Structure) -> Iterator[Amount]:
    """Yield what a model costs: each parameter once, and the multiply-adds of each layer.

    Args:
        model: The model.
        structure: Its structure.
    """
    for name, path, weight in _tensors(model, structure):
        yield Amount(name, weight.numel(), 0, _axes(structure, name, path, weight))
    inside = structure.inside
    for name, module in model.get_submodule(inside).named_modules(prefix=inside):
        twin = structure.twins.get(name)
        counting = structure.linears.get(name) or structure.channelwise.get(name) or twin
        macs = counting.macs if counting else structure.unseen.get(name, 0)
        if twin is not None:
            yield from _work_of_twin(name, module, twin)
        else:
            yield Amount(name, 0, macs, _axes(structure, name))
    for work in structure.other_work:
        yield Amount(work.module or inside, 0, work.macs, _axes_of(work))


def _axes_of(work: Work) -> tuple[Pieces, ...]:
    """Return with which channels a function's work shrinks: costs are products of two widths."""
    return (*filter(None, [work.made]), *work.summed)[:2]


def weight_bytes(
    model: nn.Module, structure: Structure
) -> Iterator[tuple[float, tuple[Pieces | None, ...]]]:
    """Yield the bytes of each parameter and buffer once, with its axes of channels.

    Args:
        model: The model.
        structure: Its structure.
    """
    for name, path, weight in _tensors(model, structure, buffers=True):
        # Of a layer that is folded, weight and bias alone become narrow.
        fixed = name in structure.linears and not isinstance(weight, nn.Parameter)
        fixed = fixed and path not in structure.parameters
        yield weight.nbytes, () if fixed else _axes(structure, name, path, weight)


def _tensors(
    model: nn.Module, structure: Structure, buffers: bool = False
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the parameters of a model, and its buffers, each once: its module, its path, itself."""
    counted: set[int] = set()
    inside = structure.inside
    for name, module in model.get_submodule(inside).named_modules(prefix=inside):
        found: list[tuple[str, Tensor]] = [*module.named_parameters(name, recurse=False)]
        found += module.named_buffers(name, recurse=False) if buffers else ()
        for path, weight in found:
            if id(weight) not in counted:
                counted.add(id(weight))
                yield name, path, weight


def _work_of_twin(name: str, module: nn.Module, twin: TwinLayer) -> Iterator[Amount]:
    """Yield the multiply-adds of a layer whose twin is one of its own.

    Those of a recurrent layer go by its weights, each of which is used once in a step of time.
    """
    yield Amount(name, 0, twin.products, (twin.outputs,))
    left = twin.macs - twin.products
    if not isinstance(module, nn.RNNBase):
        yield Amount(name, 0, left, (twin.outputs, twin.inputs))
        return
    weights = {path: each for path, each in module.named_parameters() if each.dim() > 1}
    entries = sum(map(Tensor.numel, weights.values()))
    for path, weight in weights.items():
        axes = _axes_of_twin(twin, path, weight)
        yield Amount(name, 0, left * weight.numel() / entries, axes)


def _axes(
    structure: Structure, name: str, path: str = "", weight: Tensor | None = None
) -> tuple[Pieces | None, ...]:
    """Return the axes of channels of a parameter of a module; without one, of its work."""
    if path in structure.parameters:
        return tuple(structure.parameters[path].axes.values())
    if name in structure.linears:
        layer = structure.linears[name]
        matrix = weight is None or weight.dim() > 1
        return (layer.outputs, layer.inputs) if matrix else (layer.outputs,)
    owner = name if name in structure.twins else name.rpartition(".")[0]
    if owner in structure.twins:
        return _axes_of_twin(structure.twins[owner], path.removeprefix(f"{owner}."), weight)
    other = structure.channelwise.get(name)
    one_for_all = weight is not None and weight.numel() == 1
    return () if other is None or other.axis is None or one_for_all else (other.pieces,)


def _axes_of_twin(twin: TwinLayer, which: str, weight: Tensor | None) -> tuple[Pieces | None, ...]:
    """Return the axes of channels of a parameter of a layer whose twin is one of its own."""
    first = ("weight_ih_l0", "in_proj_weight", "q_proj_weight")
    if weight is None or which == "weight" or which.startswith(first):
        return (twin.outputs, twin.inputs)
    # Of a recurrent layer from its hidden state, and of attention from its heads.
    if which.startswith(("weight_", "out_proj.weight")):
        return (twin.outputs, twin.outputs)
    counts = "bias" in which or weight.shape[:1] == (size_of(twin.outputs),)
    return (twin.outputs,) if counts else ()


def costs_of_unseen(model: nn.Module, structure: Structure) -> dict[str, Cost]:
    """Return the cost of each part that is not looked into, by path; the totals include it."""
    return {
        name: Cost(
            sum(map(_output_channels, (part := model.get_submodule(name)).modules())),
            sum(parameter.numel() for parameter in part.parameters()),
            macs,
        )
        for name, macs in structure.unseen.items()
    }


def _output_channels(module: nn.Module) -> int:
    """Return the output channels of a convolution or fully connected layer that is not depthwise.

    A channelwise layer makes no channels of its own.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    if not isinstance(module, CONVOLUTIONS + TRANSPOSED):
        return 0
    return 0 if 1 < module.in_channels == module.groups else module.out_channels


def macs_shares(structure: Structure) -> list[float]:
    """Return for each group the share of all multiply-adds that make its channels."""
    layers: list[tuple[Pieces, float]] = [
        (layer.outputs, layer.macs) for layer in structure.linears.values()
    ]
    layers += [(layer.pieces, layer.macs) for layer in structure.channelwise.values()]
    layers += [(layer.outputs, layer.macs) for layer in structure.twins.values()]
    layers += [(work.made, work.macs) for work in structure.other_work if work.made]
    macs = [0.0] * len(structure.groups)
    for pieces, work in layers:
        size = size_of(pieces)
        for piece in pieces:
            macs[piece.group] += work * piece.size / size
    total = sum(work for _, work in layers) + sum(structure.unseen.values())
    total += sum(work.macs for work in structure.other_work if not work.made)
    return [work / max(total, 1) for work in macs]

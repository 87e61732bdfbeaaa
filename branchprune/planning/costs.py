"""What a plan saves: channels, parameters and multiply-adds before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED
from branchprune.graph.structure import Pieces, Structure


@dataclass(frozen=True)
class Cost:
    """Size of a model: output channels of its layers, parameters, multiply-adds for one example."""

    channels: int
    params: int
    macs: int


def costs(model: nn.Module, structure: Structure, kept: Sequence[int]) -> tuple[Cost, Cost]:
    """Return channels, parameters and MACs before and, by the widths, after.

    Args:
        model: The model.
        structure: Its structure.
        kept: The width that each group keeps.
    """

    def size(pieces: Pieces, after: bool) -> int:
        return sum((kept[p.group] if after else p.width) * p.repeat for p in pieces)

    def narrowed(pieces: Pieces | None) -> float:
        return size(pieces, True) / size(pieces, False) if pieces else 1.0

    channels, params, macs = [0, 0], [0.0, 0.0], [0.0, 0.0]
    counted: set[int] = set()
    for name, module in model.get_submodule(structure.inside).named_modules(
        prefix=structure.inside
    ):
        own = module.named_parameters(name, recurse=False)
        weights = {path: p for path, p in own if id(p) not in counted}
        counted.update(map(id, weights.values()))
        linear, other = structure.linears.get(name), structure.channelwise.get(name)
        outer = inner = 1.0
        if linear:
            outer, inner = narrowed(linear.outputs), narrowed(linear.inputs)
            channels = [channels[i] + size(linear.outputs, bool(i)) for i in (0, 1)]
        elif other and other.axis is not None:
            outer = narrowed(other.pieces)
        for i, factor in enumerate((1.0, outer)):
            for path, weight in weights.items():
                matrix = linear is not None and weight.dim() > 1
                scale = factor * (inner if i and matrix else 1.0)
                if other and weight.numel() == 1:
                    scale = 1.0  # one number for all channels
                if i and path in structure.parameters:
                    scale = narrowed(structure.parameters[path].pieces)
                params[i] += weight.numel() * scale
            seen = linear or other
            work = seen.macs if seen else structure.unseen.get(name, 0)
            macs[i] += work * factor * (inner if i and linear else 1.0)
    left_out = sum(cost.channels for cost in costs_of_unseen(model, structure).values())
    channels = [count + left_out for count in channels]
    macs = [work + structure.other_macs for work in macs]
    before, after = (Cost(channels[i], round(params[i]), round(macs[i])) for i in (0, 1))
    return before, after


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
    layers = [(layer.outputs, layer.macs) for layer in structure.linears.values()]
    layers += [(layer.pieces, layer.macs) for layer in structure.channelwise.values()]
    macs = [0.0] * len(structure.groups)
    for pieces, work in layers:
        size = sum(piece.size for piece in pieces)
        for piece in pieces:
            macs[piece.group] += work * piece.size / size
    total = sum(work for _, work in layers) + sum(structure.unseen.values())
    total += structure.other_macs
    return [work / max(total, 1) for work in macs]

"""A model at its planned widths, with weights that are cut instead of trained."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import copied
from branchprune.graph.layers import (
    TRANSPOSED,
    become,
    narrow_channelwise,
    put_parameters,
    set_linear_width,
    set_path,
)
from branchprune.graph.structure import Pieces, Structure, size_of
from branchprune.graph.twin_layers import narrow_layer

NOISE = 0.1


def narrowed(model: nn.Module, structure: Structure, kept: Sequence[int]) -> nn.Module:
    """Return a copy of a model in which every group has the width that it keeps.

    Which channels stay is of no account. Weights that are all alike, such as a norm's that starts
    at 0 and would hide what stands before it, become noise.

    Args:
        model: The model; it is not changed.
        structure: Its structure.
        kept: The width of each group.
    """
    small = copied(model, sharing=True)

    def size(pieces: Pieces) -> int:
        return size_of(pieces, kept)

    def changes(pieces: Pieces | None) -> bool:
        return any(kept[piece.group] != piece.width for piece in pieces or ())

    for layer in structure.linears.values():
        if changes(layer.outputs) or changes(layer.inputs):
            inputs = size(layer.inputs) if layer.inputs else None
            cut_linear(small.get_submodule(layer.name), size(layer.outputs), inputs)
    for other in structure.channelwise.values():
        if changes(other.pieces):
            module, wide = small.get_submodule(other.name), size_of(other.pieces)
            index = torch.arange(size(other.pieces))
            become(module, narrow_channelwise(module, other.axis, other.times, wide, index))
    for parameter in structure.parameters.values():
        if changes(parameter.pieces):
            wide_one: Tensor = attrgetter(parameter.name)(small)
            narrow = wide_one.detach()
            for axis, pieces in parameter.axes.items():
                narrow = narrow.narrow(axis, 0, size(pieces))
            narrow = narrow.clone()
            if isinstance(wide_one, nn.Parameter):
                narrow = nn.Parameter(narrow, wide_one.requires_grad)
            set_path(small, parameter.name, narrow)
    for twin in structure.twins.values():
        if changes(twin.pieces):
            module = small.get_submodule(twin.name)
            read = None if twin.inputs is None else torch.arange(size(twin.inputs))
            become(module, narrow_layer(module, read, torch.arange(size(twin.outputs))))
    _disturb(small)
    return small


def cut_linear(module: nn.Module, outputs: int, inputs: int | None) -> None:
    """Leave a convolution or fully connected layer its first inputs and outputs.

    Args:
        module: The layer; it is changed.
        outputs: How many output channels it keeps.
        inputs: How many input channels it keeps; None: all.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    groups = int(getattr(module, "groups", 1))
    if isinstance(module, TRANSPOSED):
        first, second = inputs or len(weight), outputs // groups
    else:
        first, second = outputs, weight.shape[1] if inputs is None else inputs // groups
    cut = weight.detach()[:first, :second].contiguous()
    set_linear_width(module, cut, bias.detach()[:outputs] if isinstance(bias, Tensor) else None)


def _disturb(small: nn.Module) -> None:
    """Replace parameters that are one number all over by noise around it."""
    noise = torch.Generator().manual_seed(0)
    seen: dict[int, nn.Parameter] = {}
    for module in small.modules():
        for name, old in module._parameters.items():
            if old is None or not old.is_floating_point() or not old.numel():
                continue
            values = old.detach()
            if id(old) not in seen and bool((values == values.flatten()[0]).all()):
                drawn = torch.randn(old.shape, generator=noise).to(old.device, old.dtype)
                seen[id(old)] = nn.Parameter(values + NOISE * drawn, old.requires_grad)
            put_parameters(module, {name: seen.get(id(old), old)})

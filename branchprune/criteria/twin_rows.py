"""The weights that make a group's channels in layers whose twin has weights of its own."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from torch import Tensor, nn

from branchprune.graph.structure import Pieces, Structure

Rows = tuple[Tensor, Tensor | None]
"""A weight as a (C, n) matrix, a row a channel of the group, and its gradient, if there is one."""


def rows_of_twins(
    model: nn.Module, structure: Structure, index: int, graded: nn.Module
) -> Iterator[Rows]:
    """Yield what makes the channels of a group in recurrent layers and the like.

    Args:
        model: The model.
        structure: Its structure.
        index: The group.
        graded: The same model with the gradients, which copies lack.
    """
    for layer in structure.twins.values():
        module, other = model.get_submodule(layer.name), graded.get_submodule(layer.name)
        if isinstance(module, nn.MultiheadAttention):
            module, other = module.out_proj, other.get_submodule("out_proj")
        if not isinstance(module, nn.RNNBase):
            yield from _rows(module.weight, other.weight, layer.outputs, index)
        elif any(piece.group == index for piece in layer.outputs):
            for name in module._parameters:
                if name.startswith("weight"):
                    weights = getattr(module, name), getattr(other, name)
                    yield _of_channels(*weights, module.hidden_size)
    for weight in structure.parameters.values():
        axis = next(iter(weight.axes))
        here, graded_one = (attrgetter(weight.name)(each) for each in (model, graded))
        yield from _rows(here, graded_one, weight.outputs, index, axis)


def _of_channels(weight: Tensor, graded: Tensor, width: int) -> Rows:
    """Return all gates of a recurrent layer's weight, by the channel of the hidden state."""

    def rows(tensor: Tensor) -> Tensor:
        gates: Tensor = tensor.detach().unflatten(0, (-1, width))
        return gates.transpose(0, 1).flatten(1)

    return rows(weight), None if graded.grad is None else rows(graded.grad)


def _rows(
    weight: object, graded: object, outputs: Pieces, group: int, axis: int = 0
) -> Iterator[Rows]:
    """Yield the rows of a group's channels along the axis of a weight that counts outputs."""
    assert isinstance(weight, Tensor) and isinstance(graded, Tensor)
    start = 0
    for piece in outputs:
        if piece.group == group:
            rows, gradient = (
                None
                if each is None
                else each.detach().narrow(axis, start, piece.size).movedim(axis, 0)
                for each in (weight, graded.grad)
            )
            assert rows is not None
            width = piece.width
            yield (
                rows.reshape(width, -1),
                None if gradient is None else gradient.reshape(width, -1),
            )
        start += piece.size

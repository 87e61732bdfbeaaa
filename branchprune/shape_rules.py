"""Rules of the operations that move, merge or cut dimensions; see `rules`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from branchprune.channels import Layout

if TYPE_CHECKING:
    from branchprune.analysis import Analysis


def reshape(analysis: Analysis, node: fx.Node) -> Layout | None:
    """View, reshape, flatten: the channels stay a dimension, or merge with those behind them."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    before, after = analysis.shape(operand), analysis.shape(node)
    place = _channel_place(before, after, layout.dim)
    if place is None:
        return analysis.unknown(node, "it splits or merges the channel dimension")
    size = _requested_size(node, place, len(after))
    if isinstance(size, int) and size != -1:
        return analysis.unknown(
            node, f"it names the size {size}; flatten(1) or size -1 would follow the width"
        )
    return layout.repeated(after[place] // before[layout.dim]).at(place)


def _channel_place(before: tuple[int, ...], after: tuple[int, ...], dim: int) -> int | None:
    """Return the dimension of `after` that begins with the channels of `before`, if any."""
    if 0 in before:
        return None
    for place in reversed(range(len(after))):
        merged = after[place] // before[dim]
        tail = [prod(before[dim + 1 : end]) for end in range(dim + 1, len(before) + 1)]
        if (
            prod(after[:place]) == prod(before[:dim])
            and after[place] == merged * before[dim]
            and merged in tail
        ):
            return place
    return None


def _requested_size(node: fx.Node, place: int, rank: int) -> Any:
    """Return what a view asks for at one dimension: a number, a node, or None for flatten."""
    if node.op != "call_method" and node.target is not torch.reshape:
        return None
    if node.target == "flatten":
        return None
    sizes: Any = node.args[1:] or node.kwargs.get("shape") or node.kwargs.get("size")
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    if len(sizes) != rank:
        return None
    return sizes[place]


def permute(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Permutation of the dimensions."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    order: Any = node.args[1:] or node.kwargs.get("dims")
    if len(order) == 1 and isinstance(order[0], list | tuple):
        order = order[0]
    if not all(isinstance(dim, int) for dim in order):
        return analysis.unknown(node)
    return layout.at([dim % len(order) for dim in order].index(layout.dim))


def transpose(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Exchange of two dimensions."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    pair = [*node.args[1:], *(v for k, v in node.kwargs.items() if k.startswith("dim"))]
    rank = len(analysis.shape(node))
    a, b = (dim % rank for dim in pair if isinstance(dim, int))
    return layout.at({a: b, b: a}.get(layout.dim, layout.dim))


def reduce_dims(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Mean, sum, …: fine over any dimension but the channels."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    rank = len(analysis.shape(operand))
    dims = [argument] if isinstance(argument, int) else argument
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return analysis.unknown(node, "it mixes all channels")
    gone = {d % rank for d in dims if isinstance(d, int)}
    if layout.dim in gone:
        return analysis.unknown(node, "it mixes all channels")
    return layout if keepdim else layout.at(layout.dim - sum(d < layout.dim for d in gone))


def unsqueeze(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A new dimension of size 1."""
    layout = analysis.layout(analysis.operand(node))
    dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
    if layout is None or not isinstance(dim, int):
        return layout and analysis.unknown(node)
    return layout.at(layout.dim + (dim % len(analysis.shape(node)) <= layout.dim))


def squeeze(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Removal of dimensions of size 1."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    shape = analysis.shape(operand)
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = range(len(shape)) if argument is None else [argument]
    if not all(isinstance(d, int) for d in dims) or shape[layout.dim] == 1:
        return analysis.unknown(node)
    gone = {d % len(shape) for d in dims if isinstance(d, int) and shape[d] == 1}
    return layout.at(layout.dim - sum(d < layout.dim for d in gone))


def getitem(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Indexing with numbers, slices and None anywhere but along the channels."""
    operand, index = node.args
    layout = analysis.layout(operand) if isinstance(operand, fx.Node) else None
    if layout is None or not isinstance(operand, fx.Node):
        return None
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(analysis.shape(operand)) - sum(i is not None for i in items) + 1
        items[at : at + 1] = [slice(None)] * missing
    old = new = 0
    for item in items:
        if old == layout.dim and item is not None:
            break
        known = isinstance(item, int | slice | fx.Node | None)
        if not known or (isinstance(item, fx.Node) and analysis.is_tensor(item)):
            return analysis.unknown(node, "it indexes with a tensor")
        old += item is not None
        new += item is None or isinstance(item, slice)
    else:
        return layout.at(layout.dim - old + new)
    if item != slice(None):
        return analysis.unknown(node, "it picks some of the channels")
    return layout.at(new)


def size_of(analysis: Analysis, node: fx.Node) -> None:
    """A size, shape, type or device: a value that the twin reads from its own tensors."""

"""Rules of the operations that move, drop, add or index dimensions."""

from __future__ import annotations

from typing import Any

from torch import fx

from branchprune.graph.channels import Known, Layout
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import argument, numbers_behind
from branchprune.graph.reasons import Reason, place_of
from branchprune.graph.rules.factories import factory
from branchprune.graph.rules.split import cut_out
from branchprune.graph.rules.unlisted import unlisted
from branchprune.graph.state import Analysis


def permute(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Permutation of the dimensions."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    order = numbers_behind(node, "dims")
    if not all(isinstance(dim, int) for dim in order):
        return analysis.unknown(node)
    return layout.permuted([dim % len(order) for dim in order].index)


def transpose(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Exchange of two dimensions."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    pair = [*node.args[1:], *(v for k, v in node.kwargs.items() if k.startswith("dim"))]
    rank = len(analysis.shape(node))
    a, b = (dim % rank for dim in pair if isinstance(dim, int))
    return layout.permuted(lambda dim: {a: b, b: a}.get(dim, dim))


def reduce_dims(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Mean, sum, …: over the channels it ends them, over another dimension they stay."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    given, keepdim = argument(node, 1, "dim"), argument(node, 2, "keepdim", default=False)
    rank = len(analysis.shape(operand))
    dims = [given] if isinstance(given, int) else given
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return analysis.unknown(node, "it mixes all channels")
    gone = {d % rank for d in dims}
    if layout.dim in gone:
        analysis.contract(node, layout)
        why = f"{analysis.describe(node)}: it mixes all channels"
        analysis.lost[node] = Reason(why, place_of(node))
        return None
    return layout if keepdim else layout.at(layout.dim - sum(d < layout.dim for d in gone))


def unsqueeze(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A new dimension of size 1."""
    layout = analysis.layout(analysis.operand(node))
    dim = argument(node, 1, "dim")
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
    dim = argument(node, 1, "dim")
    dims = range(len(shape)) if dim is None else [dim]
    if not all(isinstance(d, int) for d in dims) or shape[layout.dim] == 1:
        return analysis.unknown(node)
    gone = {d % len(shape) for d in dims if shape[d] == 1}
    return layout.at(layout.dim - sum(d < layout.dim for d in gone))


def getitem(analysis: Analysis, node: fx.Node) -> Known:
    """Indexing with numbers, slices and None anywhere but along the channels."""
    operand, index = node.args
    parts = analysis.values.get(operand) if isinstance(operand, fx.Node) else None
    if isinstance(parts, tuple):
        return parts[index] if isinstance(index, int | slice) else None
    layout = analysis.layout(operand) if isinstance(operand, fx.Node) else None
    if layout is None or not isinstance(operand, fx.Node):
        return None
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(analysis.shape(operand)) - sum(i is not None for i in items) + 1
        items[at : at + 1] = [slice(None)] * missing
    if any(_is_tensor(analysis, item) for item in items):
        return unlisted(analysis, node)
    old = new = 0
    for item in items:
        if old == layout.dim and item is not None:
            break
        old += item is not None
        new += item is None or isinstance(item, slice)
    else:
        return layout.at(layout.dim - old + new)
    if _whole(item, layout.size):
        return layout.at(new)
    if not isinstance(item, slice) or item.step not in (None, 1):
        return analysis.unknown(node, "it picks some of the channels")
    size = analysis.shape(node)[new]
    part = cut_out(analysis, node, layout, item.start, item.stop, size)
    return part and part.at(new)


def _is_tensor(analysis: Analysis, item: Any) -> bool:
    """Return whether an index is a tensor, or a list, which torch takes for one."""
    if isinstance(item, fx.Node):
        return analysis.is_tensor(item)
    return not isinstance(item, int | slice | None)


def repeat(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Repetition of a tensor along any dimension but the channels, or as often as there are."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return factory(analysis, node)
    times = numbers_behind(node, "repeats")
    dim = layout.dim + len(analysis.shape(node)) - len(analysis.shape(operand))
    if times[dim] != 1:
        return analysis.unknown(node, "it repeats the channels")
    return layout.at(dim)


def flip(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Reversal of any dimension but the channels."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    dims = numbers_behind(node, "dims")
    rank = len(analysis.shape(node))
    if any(not isinstance(dim, int) or dim % rank == layout.dim for dim in dims):
        return analysis.unknown(node, "it reverses the channels")
    return layout


def _whole(item: Any, size: int) -> bool:
    """Return whether an index is a slice of everything, as `:` is and `:n` of n channels."""
    return (
        isinstance(item, slice)
        and item.start in (None, 0)
        and item.step in (None, 1)
        and (item.stop is None or (type(item.stop) is int and item.stop >= size))
    )


def size_of(analysis: Analysis, node: fx.Node) -> None:
    """A size, shape, type or device: a value that the twin reads from its own tensors."""


def expand(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Repetition of dimensions of size 1, perhaps to channels; new dimensions come first."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return factory(analysis, node)
    sizes = numbers_behind(node, "size", "sizes")
    dim = layout.dim + len(analysis.shape(node)) - len(analysis.shape(operand))
    size = sizes[dim] if dim < len(sizes) else None
    if isinstance(size, ModuleNumber):
        analysis.follows(node, size, layout.segments)
    elif isinstance(size, int) and size != -1:
        return analysis.unknown(node, f"it names the size {size}", "write -1 in its place")
    return layout.at(dim)

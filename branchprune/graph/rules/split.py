"""Rules of operations that split the channels: chunk, split, slices, narrow, unbind, GLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from branchprune.graph.channels import Known, Layout, cut, divided, resolve, unify
from branchprune.graph.nodes import argument
from branchprune.graph.provenance import Cut
from branchprune.graph.state import WAY_OUT, Analysis

NUMBERS = (
    *("chunks", "split_size", "split_size_or_sections"),
    *("indices_or_sections", "sections", "indices"),
)
"""How the number of parts, their sizes or where they begin are named."""


def divide(analysis: Analysis, node: fx.Node) -> Known:
    """Chunk, split and tensor_split: equal parts of the channels get the same width."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    pieces = argument(node, 1, *NUMBERS)
    dim = argument(node, 2, "dim", default=0)
    count = analysis.length(node)
    if not isinstance(dim, int):
        return analysis.unknown(node)
    if dim % len(analysis.shape(operand)) != layout.dim:
        return (layout,) * count
    sizes = pieces if isinstance(pieces, list | tuple) else [pieces] * count
    name = getattr(node.target, "__name__", node.target)
    if name == "tensor_split" and not isinstance(pieces, int):
        return analysis.unknown(node, "it names where it cuts; split names sizes that can follow")
    if name != "split" or not any(isinstance(size, int) for size in sizes):
        return equal_parts(analysis, node, layout, count)
    return _named_parts(analysis, node, layout, sizes)


def _named_parts(
    analysis: Analysis, node: fx.Node, layout: Layout, sizes: Sequence[Any]
) -> tuple[Layout, ...] | None:
    """Cut the channels into parts of sizes that forward computes or names."""
    rest = layout.size - sum(int(size) for size in sizes if isinstance(size, int))
    open_ones = sum(not isinstance(size, int) for size in sizes)
    known = [int(size) if isinstance(size, int) else rest for size in sizes]
    parts = None
    if open_ones < 2 and sum(known) == layout.size and not layout.moved:
        parts = divided(layout.segments, known)
    if parts is None:
        analysis.unknown(node, "it splits the channels where they cannot be split")
        return None
    remedy = _how_to_follow(layout, sizes[0]) if len({*known}) == 1 else WAY_OUT
    for size, part in zip(sizes, parts, strict=True):
        analysis.follows(node, size, part, remedy=remedy)
    return tuple(Layout(layout.dim, tuple(resolve(part))) for part in parts)


def cut_out(
    analysis: Analysis, node: fx.Node, layout: Layout, start: Any, stop: Any, size: int
) -> Layout | None:
    """Take a range of the channels, as `x[:, start:stop]` does.

    Args:
        analysis: The walk.
        node: What takes them.
        layout: All channels.
        start: Where it begins: None, or a number as `Analysis.follows` takes it.
        stop: Where it ends; from the end, if it is negative.
        size: How many there are of them for the example.
    """
    total, parts = layout.size, None
    if isinstance(start, int | None):
        first = int(start or 0) + (total if (start or 0) < 0 else 0)
    elif isinstance(stop, int | None):
        end = total if stop is None else min(int(stop), total) + (total if stop < 0 else 0)
        first = end - size
    else:
        return analysis.unknown(node, "it picks some of the channels")
    sizes = [first, size, total - first - size]
    if min(sizes) >= 0 and size and not layout.moved:
        parts = divided(layout.segments, sizes)
    if parts is None:
        return analysis.unknown(node, "it picks some of the channels")
    before, part, behind = parts
    for number, ahead, rest in ((start, before, part + behind), (stop, before + part, behind)):
        if isinstance(number, int) and number < 0:
            analysis.follows(node, number, rest, sign=-1)
        elif number is not None and not (isinstance(number, int) and number >= total):
            analysis.follows(node, number, ahead, remedy=_how_to_follow(layout, number))
    if not all(isinstance(number, int | None) for number in (start, stop)):
        _tie_equal(analysis, node, layout, first, size)
    return Layout(layout.dim, tuple(resolve(part)))


def _tie_equal(analysis: Analysis, node: fx.Node, layout: Layout, first: int, size: int) -> None:
    """Tie parts that are equal, where one of them is taken by a number that follows from sizes."""
    if layout.size % size == 0 and first % size == 0:
        equal_parts(analysis, node, layout, layout.size // size)


def narrow(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Narrow: a number of entries of a dimension, from one on."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    dim, start = argument(node, 1, "dim"), argument(node, 2, "start")
    length = argument(node, 3, "length")
    if layout is None or not isinstance(dim, int):
        return layout and analysis.unknown(node)
    if dim % len(analysis.shape(operand)) != layout.dim:
        return layout
    if not isinstance(start, int) or not isinstance(length, int):
        return analysis.unknown(node, "it picks some of the channels")
    part = cut_out(analysis, node, layout, start or None, None, length)
    if part is not None:
        analysis.follows(node, length, part.segments, remedy=_how_to_follow(layout, length))
    return part


def _how_to_follow(layout: Layout, number: Any) -> str:
    """Return what to write in place of a number in forward that is a part of some channels."""
    if not isinstance(number, int) or number <= 0 or layout.size % number:
        return WAY_OUT
    return f"write `x.shape[{layout.dim}] // {layout.size // number}` in its place"


def equal_parts(
    analysis: Analysis, node: fx.Node, layout: Layout, count: int
) -> tuple[Layout, ...] | None:
    """Cut the channels into equal parts and tie them, so that they stay equal.

    Args:
        analysis: The walk.
        node: What cuts them.
        layout: The channels.
        count: Number of parts.

    Returns:
        Where the channels of each part are; None, and the width stays, where a cut would fall into
        a channel or a block.
    """
    parts = cut(layout.segments, layout.size // count) if layout.size % count == 0 else None
    if parts is None:
        analysis.unknown(node, "it splits the channels where they cannot be split")
        return None
    for part in parts[1:]:
        unify(parts[0], part, analysis.describe(node))
    origins = [layout.moved and Cut(layout.moved, i, count) for i in range(count)]
    return tuple(
        Layout(layout.dim, tuple(resolve(part)), None, origin)
        for part, origin in zip(parts, origins, strict=True)
    )


def unbind(analysis: Analysis, node: fx.Node) -> Known:
    """Unbind: one tensor for each index of a dimension."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    dim = argument(node, 1, "dim", default=0)
    if layout is None or not isinstance(dim, int):
        return layout and analysis.unknown(node)
    dim %= len(analysis.shape(operand))
    if dim == layout.dim:
        return analysis.unknown(node, "it splits the channels one by one")
    return (layout.at(layout.dim - (dim < layout.dim)),) * analysis.length(node)


def halve(analysis: Analysis, node: fx.Node) -> Layout | None:
    """GLU: the first half of a dimension times the sigmoid of the second."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    module = analysis.module(node) if node.op == "call_module" else None
    dim = module.dim if isinstance(module, nn.GLU) else argument(node, 1, "dim", default=-1)
    if dim % len(analysis.shape(node)) != layout.dim:
        return layout
    parts = equal_parts(analysis, node, layout, 2)
    return parts[0] if parts else None

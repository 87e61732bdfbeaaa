"""Rules of the operations that split the channels into parts: chunk, split, unbind, GLU."""

from __future__ import annotations

from torch import fx, nn

from branchprune.graph.channels import Known, Layout, cut, resolve, unify
from branchprune.graph.nodes import argument
from branchprune.graph.provenance import Cut
from branchprune.graph.state import Analysis


def divide(analysis: Analysis, node: fx.Node) -> Known:
    """Chunk and split: along the channels into equal parts, which get the same width."""
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    pieces = argument(node, 1, "chunks", "split_size", "split_size_or_sections")
    dim = argument(node, 2, "dim", default=0)
    count = analysis.length(node)
    if not isinstance(dim, int):
        return analysis.unknown(node)
    if dim % len(analysis.shape(operand)) != layout.dim:
        return (layout,) * count
    sizes = pieces if isinstance(pieces, list | tuple) else [pieces]
    named = [size for size in sizes if isinstance(size, int)]
    if named and getattr(node.target, "__name__", node.target) != "chunk":
        why = f"it names the size {named[0]}; chunk would follow the width"
        return analysis.unknown(node, why)
    return equal_parts(analysis, node, layout, count)


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
        unify(parts[0], part, node.name)
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

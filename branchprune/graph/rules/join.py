"""Rules of the operations that join tensors: concatenation and stacking."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from branchprune.graph.channels import Channels, Layout, Segment, unify
from branchprune.graph.provenance import Joined
from branchprune.graph.state import Analysis


def concatenate(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Concatenation: along the channels their widths add up, else the inputs are tied."""
    tensors = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [n for n in tensors if isinstance(n, fx.Node)] if isinstance(tensors, Iterable) else []
    known = [pair for pair in analysis.layouts(parts) if not pair[1].free]
    if not known:
        return None
    shape = analysis.shape(node)
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    channel = known[0][1].dim
    if not isinstance(argument, int) or any(layout.dim != channel for _, layout in known):
        return analysis.unknown(node)
    joined: list[Layout] = []
    for part in parts:
        layout = analysis.layout(part) or analysis.parameter(part, channel)
        if layout is None:
            constant = Channels(analysis.shape(part)[channel], reason="not made by a layer")
            layout = Layout(channel, (Segment(constant),))
        joined.append(layout)
    if argument % len(shape) == channel:
        segments = tuple(segment for layout in joined for segment in layout.segments)
        moved = any(layout.moved for layout in joined)
        origin = Joined(tuple(layout.origin for layout in joined)) if moved else None
        return Layout(channel, segments, None, origin)
    for other in joined[1:]:
        unify(joined[0].segments, other.segments, node.name)
    return joined[0].at(channel)


def stack(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Stacking along a new dimension: the inputs are tied."""
    tensors = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [n for n in tensors if isinstance(n, fx.Node)] if isinstance(tensors, Iterable) else []
    known = [layout for _, layout in analysis.layouts(parts)]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not known:
        return None
    same = len(known) == len(parts) and all(layout.dim == known[0].dim for layout in known)
    if not isinstance(dim, int) or not same:
        return analysis.unknown(node)
    for layout in known[1:]:
        unify(known[0].segments, layout.segments, node.name)
    return known[0].at(known[0].dim + (dim % len(analysis.shape(node)) <= known[0].dim))

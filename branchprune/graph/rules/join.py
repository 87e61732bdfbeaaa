"""Rules of the operations that join tensors: concatenation and stacking."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from branchprune.graph.channels import Channels, Layout, Segment, unify
from branchprune.graph.nodes import argument
from branchprune.graph.provenance import Joined
from branchprune.graph.reasons import Reason, name_of_output, place_of
from branchprune.graph.state import Analysis


def _parts(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that are joined."""
    tensors = argument(node, 0, "tensors")
    return [n for n in tensors if isinstance(n, fx.Node)] if isinstance(tensors, Iterable) else []


def concatenate(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Concatenation: along the channels their widths add up, else the inputs are tied."""
    parts = _parts(node)
    known = [pair for pair in analysis.layouts(parts) if not pair[1].free]
    if not known:
        return None
    shape = analysis.shape(node)
    dim = argument(node, 1, "dim", default=0)
    channel = known[0][1].dim
    if not isinstance(dim, int) or any(layout.dim != channel for _, layout in known):
        return analysis.unknown(node)
    joined: list[Layout] = []
    for part in parts:
        layout = analysis.layout(part) or analysis.parameter(part, channel, node)
        if layout is None:
            constant = Channels(analysis.shape(part)[channel], reason=_why_constant(analysis, part))
            layout = Layout(channel, (Segment(constant),))
        joined.append(layout)
    if dim % len(shape) == channel:
        segments = tuple(segment for layout in joined for segment in layout.segments)
        moved = any(layout.moved for layout in joined)
        origin = Joined(tuple(layout.origin for layout in joined)) if moved else None
        return Layout(channel, segments, None, origin)
    for other in joined[1:]:
        unify(joined[0].segments, other.segments, analysis.describe(node))
    return joined[0].at(channel)


def _why_constant(analysis: Analysis, part: fx.Node) -> Reason:
    why = analysis.why_unknown(part)
    if why is not None:
        return why.put(f"behind {why}")
    return Reason(f"no layer makes {name_of_output(part, analysis.describe)}", place_of(part))


def stack(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Stacking along a new dimension: the inputs are tied."""
    parts = _parts(node)
    known = [layout for _, layout in analysis.layouts(parts)]
    dim = argument(node, 1, "dim", default=0)
    if not known:
        return None
    same = len(known) == len(parts) and all(layout.dim == known[0].dim for layout in known)
    if not isinstance(dim, int) or not same:
        return analysis.unknown(node)
    for layout in known[1:]:
        unify(known[0].segments, layout.segments, analysis.describe(node))
    return known[0].at(known[0].dim + (dim % len(analysis.shape(node)) <= known[0].dim))

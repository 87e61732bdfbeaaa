"""Rules of the operations that merge the channel dimension with others, split or reorder it."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx, nn

from branchprune.graph.channels import Channels, Layout, fused, resolve, unify
from branchprune.graph.counted_sizes import counted
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import argument, measured, measured_tensor, sources
from branchprune.graph.provenance import Cut, Joined
from branchprune.graph.reasons import Reason, name_of_output, place_of
from branchprune.graph.rules.split import equal_parts
from branchprune.graph.state import Analysis


def reshape(analysis: Analysis, node: fx.Node) -> Layout | None:
    """View, reshape, flatten, unflatten: the channels merge with their neighbours, or split up.

    A tensor of shape (N, C, H, W) may become (N, C·H·W), each channel then occupying H·W entries;
    (N, G, C/G, H, W), where the G parts get the same width; or (N, C/R, R, H, W), where each run
    of R channels is kept or dropped together.
    """
    operand = analysis.operand(node)
    layout = analysis.layout(operand)
    if layout is None:
        return None
    before, after = analysis.shape(operand), analysis.shape(node)
    places = _places(before, after, layout.dim)
    sizes = _requested_sizes(node, len(after))
    follows = [place for place in places if not isinstance(sizes[place], int) or sizes[place] == -1]
    follows = follows or [p for p in places if isinstance(sizes[p], ModuleNumber)][-1:]
    if places and not follows:
        why = f"it names the size {sizes[places[0]]}"
        return analysis.unknown(node, why, _how_to_follow(sizes, layout.dim))
    if len(follows) != 1:
        return analysis.unknown(node, "it mixes the channel dimension with others")
    size = sizes[follows[0]]
    source = size if isinstance(size, tuple) else measured(size)
    other = counted(analysis, *source) if source else None
    if source and other is None:
        return analysis.unknown(node, f"it names a size of {analysis.why_it_stays(source[0])}")
    shaped = regrouped(analysis, node, layout, follows[0])
    if shaped is not None and other is not None:
        unify(shaped.segments, other.segments, analysis.describe(node))
    if shaped is not None and (isinstance(size, ModuleNumber) or _is_computed(size)):
        if isinstance(size, fx.Node):
            _tie_to_sources(analysis, node, shaped, size)
        analysis.follows(node, size, shaped.segments)
    return shaped


def _how_to_follow(sizes: list[Any], dim: int) -> str:
    """Return what to write in place of the size that a view names of a dimension of channels."""
    follows = f"a size that is computed from `x.shape[{dim}]`"
    if -1 in sizes:
        return f"write {follows} in its place, or -1 there and a size where -1 is now"
    return f"write -1 in its place, or {follows}"


def _channels_of(layout: Layout) -> set[Channels]:
    return {segment.channels for segment in resolve(layout.segments)}


def _is_computed(size: Any) -> bool:
    """Return whether a size is computed from those of tensors."""
    return isinstance(size, fx.Node) and measured(size) is None


def _tie_to_sources(analysis: Analysis, node: fx.Node, shaped: Layout, size: fx.Node) -> None:
    """Tie channels whose number a view computes of widths, as `C // heads`, to these widths."""
    for tensor, dim in sources(size, analysis.is_tensor):
        other = counted(analysis, tensor, dim)
        if other is None:
            continue
        parts = None
        if other.size % shaped.size == 0:
            parts = equal_parts(analysis, node, other, other.size // shaped.size)
        if parts is None and _channels_of(other) == _channels_of(shaped):
            continue  # whether `x.shape[1] * 16` is their width is seen at other widths
        if parts is None:
            of = name_of_output(tensor, analysis.describe)
            text = f"{analysis.describe(node)} computes a width from that of {of}"
            why = Reason(text, place_of(node), "write -1 in its place")
            other.freeze(why)
            shaped.freeze(why)
        else:
            unify(parts[0].segments, shaped.segments, node.name)


def _places(before: tuple[int, ...], after: tuple[int, ...], dim: int) -> list[int]:
    """Return the dimensions of `after` over which dimension `dim` of `before` is spread."""
    if 0 in before:
        return []
    low, high = prod(before[dim + 1 :]), prod(before[dim:])
    spread = []
    for place, size in enumerate(after):
        start = prod(after[place + 1 :])
        if max(low, start) < min(high, start * size) or (low == high == start and size == 1):
            spread.append(place)
    return spread[-1:] if before[dim] == 1 else spread


def regrouped(analysis: Analysis, node: fx.Node, layout: Layout, place: int) -> Layout | None:
    """Return a layout after a reshape that leaves (part of) the channels in dimension `place`."""
    before, after = analysis.shape(analysis.operand(node)), analysis.shape(node)
    low, high = prod(before[layout.dim + 1 :]), prod(before[layout.dim :])
    start = prod(after[place + 1 :])
    end = start * after[place]
    if max(low, start) % min(low, start) or max(high, end) % min(high, end):
        return analysis.unknown(node, "it mixes the channel dimension with others")
    if end > max(high, prod(before[1:])):
        return analysis.unknown(node, "it merges the batch into the channels")
    if layout.strand is not None:
        count, ahead = before[layout.strand], layout.dim - layout.strand
        whole = layout.moved.whole if isinstance(layout.moved, Cut) else None
        merged = Layout(place, layout.segments * count, None, whole)
        if ahead == -1 and low == start * count and end == high:
            return merged.interleaved(count)
        if ahead == 1 and low == start and end == high * count:
            return merged
    segments, moved, strand = resolve(layout.segments), layout.moved, None
    if end < high:
        parts = equal_parts(analysis, node, layout, high // end)
        if parts is None:
            return None
        segments, moved = resolve(parts[0].segments), parts[0].moved
        strand = place - 1 if after[place - 1] == high // end else None
    if start > low:
        runs = fused(segments, start // low)
        if runs is None:
            return analysis.unknown(node, "it splits the channels where they cannot be split")
        segments, moved = runs, None
    once = Layout(place, tuple(segments), None, moved).repeated(max(1, low // start))
    times = max(1, end // high)
    origin = Joined((once.moved,) * times) if once.moved and times > 1 else once.moved
    return Layout(place, once.segments * times, strand, origin)


def reshape_as(analysis: Analysis, node: fx.Node) -> Layout | None:
    """View and reshape to the shape of a second tensor, to whose channels it is tied."""
    operand, like = node.args
    layout = analysis.layout(operand) if isinstance(operand, fx.Node) else None
    shaped = reshape(analysis, node)
    if layout is None or shaped is None or not isinstance(like, fx.Node):
        return shaped
    other = analysis.layout(like)
    if other is None or other.dim != shaped.dim or other.size != shaped.size:
        return analysis.unknown(node, f"it takes the shape of {analysis.why_it_stays(like)}")
    unify(shaped.segments, other.segments, analysis.describe(node))
    return shaped


def unflatten(analysis: Analysis, node: fx.Node) -> Layout | None:
    """nn.Unflatten: the first of its sizes counts the channels, and narrows with them."""
    operand, module = analysis.operand(node), analysis.module(node)
    layout = analysis.layout(operand)
    if layout is None or not isinstance(module, nn.Unflatten):
        return None
    if not isinstance(module.dim, int) or module.dim % len(analysis.shape(operand)) != layout.dim:
        return reshape(analysis, node)
    analysis.resized(node, None)
    return regrouped(analysis, node, layout, layout.dim)


def _requested_sizes(node: fx.Node, rank: int) -> list[Any]:
    """Return what a view asks for at each dimension.

    That is a number, a node that computes one, a tensor and the dimension whose size it is, or
    None where nothing is asked for.
    """
    anything: list[Any] = [None] * rank
    name = getattr(node.target, "__name__", node.target)
    if node.op == "call_module" or name in ("flatten", "view_as", "reshape_as"):
        return anything
    sizes: Any = node.args[1:] or [v for k, v in node.kwargs.items() if k != "dim"]
    if name == "unflatten":
        dim, *sizes = (node.kwargs["dim"], *sizes) if "dim" in node.kwargs else sizes
        sizes = sizes[0] if isinstance(sizes[0], list | tuple) else sizes
        start = dim % (rank - len(sizes) + 1)
        return anything[:start] + list(sizes) + anything[start + len(sizes) :]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    whole = measured_tensor(sizes[0]) if len(sizes) == 1 else None
    if whole is not None:
        return [(whole, dim) for dim in range(rank)]
    return list(sizes) if len(sizes) == rank else anything


def pixel_shuffle(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Pixel shuffle: each run of factor² channels becomes one, kept or dropped together."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    before, after = analysis.shape(analysis.operand(node)), analysis.shape(node)
    if layout.dim != len(before) - 3:
        return layout
    if before[-3] < after[-3]:
        return layout.repeated(after[-3] // before[-3])
    runs = fused(layout.segments, before[-3] // after[-3])
    if runs is None:
        return analysis.unknown(node, "it splits the channels where they cannot be split")
    return Layout(layout.dim, tuple(runs))


def channel_shuffle(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Channel shuffle: the parts that are interleaved get the same width."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    is_module = node.op == "call_module"
    groups = analysis.module(node).groups if is_module else argument(node, 1, "groups")
    if not isinstance(groups, int) or layout.dim != 1:
        return analysis.unknown(node)
    parts = equal_parts(analysis, node, layout, groups)
    if parts is None:
        return None
    segments = parts[0].segments * groups
    return Layout(1, segments, None, layout.moved).interleaved(groups)

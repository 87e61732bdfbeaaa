"""The rule of operations that have none: they are tried out on random numbers.

Which of its operands carry the channels is found by trying, too: those that are aligned as in
broadcasting, all that have equally many, or one alone, as the values of an attention. The widths of
the others then stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from math import gcd

import torch
from torch import fx
from torch.utils._pytree import tree_unflatten

from branchprune.graph.channels import Known, Layout, fused, resolve, unify
from branchprune.graph.counted_sizes import counted_by
from branchprune.graph.provenance import Joined
from branchprune.graph.reasons import Reason, place_of
from branchprune.graph.rules.elementwise import elementwise
from branchprune.graph.rules.node_call import NodeCall
from branchprune.graph.rules.probe import NotFollowed, Place, Places, probe
from branchprune.graph.state import Analysis

_ANSWERS: dict[Hashable, Places | str] = {}
"""What trying has shown in this process, by operation, arguments and shapes; else the reason."""


def unlisted(analysis: Analysis, node: fx.Node) -> Known:
    """An operation that is not known: channelwise where random numbers say so."""
    carriers = dict(analysis.layouts(node.all_input_nodes))
    if not carriers:
        return None
    if not _is_pure(analysis, node):
        return analysis.unknown(node)
    reasons: list[str] = []
    try:
        if _is_elementwise(analysis, node, carriers, reasons):
            return elementwise(analysis, node)
        for together in _carrying(carriers):
            for run in _runs(analysis, node, [carriers[n] for n in together]):
                call = NodeCall(analysis, node, {n: carriers[n].dim for n in together}, run)
                places = _answer(call, reasons)
                if places is not None:
                    return _known(analysis, call, carriers, places)
    except NotFollowed as error:
        reasons.append(str(error))
    return analysis.unknown(node, reasons[0])


def _is_pure(analysis: Analysis, node: fx.Node) -> bool:
    """Return whether a node is there for what it returns, and is torch's or Python's."""
    reads_tuple = any(isinstance(analysis.values.get(n), tuple) for n in node.all_input_nodes)
    known = node.op != "call_function" or inspect.isroutine(node.target)
    return bool(node.users) and known and not reads_tuple


def _answer(call: NodeCall, reasons: list[str]) -> Places | None:
    """Return where the channels of the output are; None, and one more reason, if nowhere."""
    key = call.key()
    answer = _ANSWERS.get(key) if key is not None else None
    if answer is None:
        answer = _tried(call)
        if key is not None:
            _ANSWERS[key] = answer
    if isinstance(answer, str):
        reasons.append(answer)
        return None
    return answer


def _tried(call: NodeCall) -> Places | str:
    try:
        found = [probe(each, call.operands()) for each in call.calls()]
    except NotFollowed as error:
        return str(error)
    return found[0] if found[-1] == found[0] else "it differs in training and evaluation mode"


def _is_elementwise(
    analysis: Analysis, node: fx.Node, carriers: dict[fx.Node, Layout], reasons: list[str]
) -> bool:
    """Return whether operands are combined entry by entry, as in broadcasting."""
    tensors = [n for n in node.all_input_nodes if analysis.is_tensor(n)]
    shapes = [analysis.shape(n) for n in tensors]
    if (
        len(tensors) < 2
        or not analysis.is_tensor(node)
        or not _broadcast(shapes, analysis.shape(node))
    ):
        return False
    made = {n: layout for n, layout in carriers.items() if not layout.free} or carriers
    offsets = {layout.dim - len(analysis.shape(n)) for n, layout in made.items()}
    if len(offsets) > 1:
        return False
    (offset,) = offsets
    width = analysis.shape(node)[offset]
    dims = {
        n: len(shape) + offset
        for n, shape in zip(tensors, shapes, strict=True)
        if len(shape) >= -offset and shape[offset] == width
    }
    places = _answer(NodeCall(analysis, node, dims), reasons) if width > 1 else None
    at = len(analysis.shape(node)) + offset
    return places is not None and [(p.dim, p.run) for p in places.places] == [(at, 1)]


def _broadcast(shapes: list[tuple[int, ...]], output: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(*shapes)) == output
    except RuntimeError:
        return False


def _carrying(carriers: dict[fx.Node, Layout]) -> list[list[fx.Node]]:
    """Return the operands that may carry the channels: all of one width, or one alone."""
    width = max(layout.size for layout in carriers.values())
    together = [n for n, layout in carriers.items() if layout.size == width]
    alone = [[n] for n, layout in reversed(carriers.items()) if layout.size > 1]
    return [together, *(each for each in alone if each != together)]


def _runs(analysis: Analysis, node: fx.Node, layouts: list[Layout]) -> list[int]:
    """Return how many entries of a dimension may belong to one channel."""
    if len(layouts) > 1:
        return [1]
    layout = layouts[0]
    runs = [1, gcd(*(segment.repeat for segment in resolve(layout.segments)))]
    if analysis.is_tensor(node):
        runs += [layout.size // n for n in analysis.shape(node) if n and layout.size % n == 0]
    return [run for run in dict.fromkeys(runs) if run < layout.size or run == 1]


def _known(
    analysis: Analysis, call: NodeCall, carriers: dict[fx.Node, Layout], places: Places
) -> Known:
    """Tie the operands that carry the channels, let the others stay, and return the layouts."""
    node, (first, *others) = call.node, (carriers[n] for n in call.dims)
    fixed = [layout for n, layout in carriers.items() if n not in call.dims and layout.size > 1]
    if call.run > 1:
        segments = fused(first.segments, call.run)
        if segments is None:
            return analysis.unknown(node, "it splits the channels where they cannot be split")
        first = Layout(first.dim, tuple(segments))
    for other in others:
        unify(first.segments, other.segments, node.name)
    fixed += [layout for layout in _measured(analysis, node) if not _same(layout, first)]
    for layout in fixed:
        reason = f"read by {analysis.describe(node)}: it mixes its channels"
        layout.freeze(Reason(reason, place_of(node)))
    found = [_placed(first, place, call.run) for place in places.places]
    value = tree_unflatten(found, places.structure)
    return tuple(value) if isinstance(value, list | tuple) else value


def _measured(analysis: Analysis, node: fx.Node) -> list[Layout]:
    """Return the layouts whose number of channels the node is given."""
    numbers = [n for n in node.all_input_nodes if not analysis.is_tensor(n)]
    return [layout for number in numbers for layout in counted_by(analysis, number)]


def _same(a: Layout, b: Layout) -> bool:
    return resolve(a.segments) == resolve(b.segments)


def _placed(layout: Layout, place: Place, run: int) -> Layout:
    if place.keeps_shape and run == 1 and place.dim == layout.dim:
        return layout
    if not place.tiled:
        return layout.at(place.dim).repeated(place.run)
    origin = Joined((layout.moved,) * place.run) if layout.moved else None
    return Layout(place.dim, layout.segments * place.run, None, origin)

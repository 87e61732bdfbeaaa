"""Rules of the operations that work entry by entry: on one tensor, or on several in line."""

from __future__ import annotations

from torch import fx

from branchprune.graph.channels import Layout, unify
from branchprune.graph.nodes import argument
from branchprune.graph.state import Analysis


def same(analysis: Analysis, node: fx.Node) -> Layout | None:
    """An operation on one tensor that treats every channel alike and keeps the dimensions."""
    if sum(analysis.is_tensor(n) for n in node.all_input_nodes) > 1:
        return analysis.unknown(node, "it reads a second tensor")
    return analysis.layout(analysis.operand(node))


def cast(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A change of dtype or device, perhaps to that of a second tensor."""
    return analysis.layout(analysis.operand(node))


def pad(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Padding of any dimensions but the channels."""
    layout = analysis.layout(analysis.operand(node))
    if layout is None:
        return None
    is_module = node.op == "call_module"
    padding = analysis.module(node).padding if is_module else argument(node, 1, "pad")
    if not isinstance(padding, list | tuple):
        return analysis.unknown(node)
    behind = len(analysis.shape(node)) - 1 - layout.dim  # pairs of numbers begin at the last
    if any(number != 0 for number in padding[2 * behind : 2 * behind + 2]):
        return analysis.unknown(node, "it pads the channels")
    return layout


def opaque(analysis: Analysis, node: fx.Node) -> None:
    """Something that is not looked into: the widths of what it reads stay."""
    analysis.unknown(node, "it is opaque")


def elementwise(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Addition, multiplication, …: operands are aligned from the right, as in broadcasting."""
    return _in_line(analysis, node, [n for n in node.all_input_nodes if analysis.is_tensor(n)])


def _in_line(analysis: Analysis, node: fx.Node, operands: list[fx.Node]) -> Layout | None:
    """Tie the channels of operands that are aligned from the right."""
    known = list(analysis.layouts(operands))
    made = [(n, layout) for n, layout in known if not layout.free] or known
    offsets = {layout.dim - len(analysis.shape(n)) for n, layout in made}
    if len(offsets) > 1:
        return analysis.unknown(node, "it combines channels of different dimensions")
    tied: list[Layout] = []
    for offset in offsets:
        for operand in operands:
            shape = analysis.shape(operand)
            size = shape[offset] if len(shape) >= -offset else 1
            layout = analysis.layout(operand) or (
                analysis.parameter(operand, len(shape) + offset, node) if size > 1 else None
            )
            if layout is not None and layout.dim == len(shape) + offset:
                tied.append(layout.at(len(analysis.shape(node)) + offset))
            elif size > 1:
                why = analysis.why_it_stays(operand)
                analysis.freeze_inputs(node, why.put(f"tied by {analysis.describe(node)} to {why}"))
    tied.sort(key=lambda layout: -layout.size)
    for layout in tied[1:]:
        if layout.size == tied[0].size:
            unify(tied[0].segments, layout.segments, analysis.describe(node))
    return tied[0] if tied else None


def written(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A value written into a part of a tensor: the part and the value are in line."""
    whole = node.args[0]
    assert isinstance(whole, fx.Node)
    tensors = [n for n in node.all_input_nodes if n is not whole and analysis.is_tensor(n)]
    _in_line(analysis, node, tensors)
    return analysis.layout(whole)

"""Rules of the products of tensors that sum over a dimension: matmul, einsum, attention.

Each dimension of an operand has a label, as in einsum. Dimensions of one label are in line; a
label that the output lacks is summed over. Channels are either: those of query and key end in the
product of both, those of the values are handed on.
"""

from __future__ import annotations

from string import ascii_letters

from torch import fx

from branchprune.graph.channels import Layout, unify
from branchprune.graph.nodes import argument
from branchprune.graph.state import Analysis

Labelled = list[tuple[fx.Node, str]]
"""Operands, each with a label a dimension."""


def matmul(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Matrix product: the last dimension of one operand meets the last but one of the other."""
    operands = [n for n in (*node.args, *node.kwargs.values()) if isinstance(n, fx.Node)]
    if len(operands) != 2:
        return analysis.unknown(node)
    left, right = (len(analysis.shape(operand)) for operand in operands)
    batch = ascii_letters[: max(left, right, 2) - 2]
    first = (batch + "YX")[-left:] if left > 1 else "X"
    second = (batch + "XZ")[-right:] if right > 1 else "X"
    output = batch + "Y" * (left > 1) + "Z" * (right > 1)
    return _product(analysis, node, [(operands[0], first), (operands[1], second)], output)


def einsum(analysis: Analysis, node: fx.Node) -> Layout | None:
    """Sum of products by an equation of letters."""
    equation, *given = node.args
    operands = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not isinstance(equation, str) or not all(isinstance(n, fx.Node) for n in operands):
        return analysis.unknown(node)
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or any(len(set(term)) != len(term) for term in terms):
        return analysis.unknown(node, f"it names no output, or dimensions twice: {equation!r}")
    return _product(analysis, node, [*zip(operands, terms, strict=True)], output)


def attention(analysis: Analysis, node: fx.Node) -> Layout | None:
    """`F.scaled_dot_product_attention`: query and key end, the values' channels are handed on."""
    query, key, value = (
        argument(node, i, name) for i, name in enumerate(("query", "key", "value"))
    )
    batch = ascii_letters[: len(analysis.shape(query)) - 2]
    operands = [(query, batch + "QX"), (key, batch + "KX"), (value, batch + "KZ")]
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, fx.Node):
        operands.append((mask, (batch + "QK")[-len(analysis.shape(mask)) :]))
    return _product(analysis, node, operands, batch + "QZ")


def _product(analysis: Analysis, node: fx.Node, operands: Labelled, output: str) -> Layout | None:
    """Tie what has one label; return where the channels are that the output still has."""
    labels = {
        label[layout.dim]: None
        for operand, label in operands
        if (layout := analysis.layout(operand)) is not None and not layout.free
    }
    handed_on: dict[str, Layout] = {}
    for label in labels:
        tied = _in_line(analysis, node, operands, label)
        if label in output:
            handed_on[label] = tied
        else:
            analysis.contract(node, tied)
    *others, last = sorted(handed_on, key=output.index) or (None,)
    for label in others:
        handed_on[str(label)].freeze(f"its channels meet others in {analysis.describe(node)}")
    return None if last is None else handed_on[last].at(output.index(last))


def _in_line(analysis: Analysis, node: fx.Node, operands: Labelled, label: str) -> Layout:
    """Tie the channels of all operands along the dimensions of a label."""
    tied: list[Layout] = []
    stays: list[fx.Node] = []
    for operand, dims in operands:
        at = dims.find(label)
        if at < 0 or analysis.shape(operand)[at] == 1:
            continue
        layout = analysis.layout(operand) or analysis.parameter(operand, at, node)
        if layout is not None and layout.dim == at:
            tied.append(layout)
        else:
            stays.append(operand)
    for other in tied[1:]:
        unify(tied[0].segments, other.segments, node.name)
    for operand in stays:
        tied[0].freeze(f"tied by {node.name} to {analysis.why_it_stays(operand)}")
    return tied[0]

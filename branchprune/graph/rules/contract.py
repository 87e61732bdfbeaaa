"""Rules of the products of tensors that sum over a dimension: matmul, einsum, attention.

Each dimension of an operand has a label, as in einsum. Dimensions of one label are in line; a
label that the output lacks is summed over. Channels are either: those of query and key end in the
product of both, those of the values are handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from torch import fx

from branchprune.graph.channels import Layout, unify
from branchprune.graph.layer_records import Product
from branchprune.graph.nodes import argument
from branchprune.graph.state import Analysis

Labelled = list[tuple[fx.Node, str]]
"""Operands, each with a label a dimension."""
Products = Sequence[tuple[float, tuple[str, str], str]]
"""Products of two: the share of the multiply-adds, the labels of both, those of the result."""


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
    labelled = [(operands[0], first), (operands[1], second)]
    return _product(analysis, node, labelled, output, [(1.0, (first, second), output)])


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
    products = [(1.0, (terms[0], terms[1]), output)] if len(terms) == 2 else []
    return _product(analysis, node, [*zip(operands, terms, strict=True)], output, products)


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
    ends = [analysis.shape(operand)[-1] for operand in (query, value)]
    looked_up = ends[0] / sum(ends), (batch + "QX", batch + "KX"), batch + "QK"
    handed_on = ends[1] / sum(ends), (batch + "QK", batch + "KZ"), batch + "QZ"
    return _product(analysis, node, operands, batch + "QZ", [looked_up, handed_on])


def _product(
    analysis: Analysis, node: fx.Node, operands: Labelled, output: str, products: Products = ()
) -> Layout | None:
    """Tie what has one label; return where the channels are that the output still has.

    Args:
        analysis: What is known.
        node: The product.
        operands: What is multiplied.
        output: The labels of its output.
        products: The products of two operands that it is made of.
    """
    labels = {
        label[layout.dim]: None
        for operand, label in operands
        if (layout := analysis.layout(operand)) is not None and not layout.free
    }
    tied = {label: _in_line(analysis, node, operands, label) for label in labels}
    for label, layout in tied.items():
        if label not in output:
            analysis.contract(node, layout)
    analysis.products[node] = tuple(
        Product(share, *_axes(tied, *factors, result)) for share, factors, result in products
    )
    *others, last = sorted((label for label in tied if label in output), key=output.index) or (
        None,
    )
    for label in others:
        tied[str(label)].freeze(f"its channels meet others in {analysis.describe(node)}")
    return None if last is None else tied[last].at(output.index(last))


def _axes(
    tied: dict[str, Layout], first: str, second: str, output: str
) -> tuple[tuple[Layout, ...], Layout | None]:
    """Return the channels with which a product of two operands grows.

    What one of them alone has, and the output lacks, is summed before they are multiplied. Of those
    of the output all but the last stay.
    """
    summed = tuple(tied[x] for x in tied if x in first and x in second and x not in output)
    last = max((label for label in tied if label in output), key=output.index, default=None)
    return summed, None if last is None else tied[last]


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

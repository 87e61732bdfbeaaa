"""Rule of `nn.MultiheadAttention`, and so of torch's own layers of transformers."""

from __future__ import annotations

import operator
from math import prod

from torch import fx, nn

from branchprune.graph.channels import Channels, Known, Layout, Segment, unify
from branchprune.graph.layer_records import Twin
from branchprune.graph.nodes import argument
from branchprune.graph.reasons import Reason, place_of
from branchprune.graph.state import Analysis

BY_HAND = "compute attention with fully connected layers, `@` and softmax"
"""What shrinks wherever `nn.MultiheadAttention` does not."""


def multihead(analysis: Analysis, node: fx.Node) -> Known:
    """Attention: the one width of what it reads, what it makes and of all its heads shrinks.

    The number of heads stays; each becomes narrower. Key and value of other widths stay.
    """
    module = analysis.module(node)
    assert isinstance(module, nn.MultiheadAttention)
    query, key, value = (
        argument(node, place, name) for place, name in enumerate(("query", "key", "value"))
    )
    dim = len(analysis.shape(query)) - 1
    channels = Channels(module.embed_dim, blocks=module.num_heads)
    made = Layout(dim, (Segment(channels),))
    source = _source(analysis, node, query)
    layer = analysis.twin(node, Twin((made, None), made), source)
    if source is None:
        layer.made.freeze(f"{node.target} reads {analysis.why_it_stays(query)}")
    else:
        unify(layer.made.segments, source.segments, str(node.target))
    for operand in dict.fromkeys((key, value)):
        if operand is not query:
            _read(analysis, node, operand, layer.made if module._qkv_same_embed_dim else None)
    _freeze_scores(analysis, node, layer.made)
    if analysis.counting:
        layer.products += _products(analysis, node, query, key, value)
    return layer.made.at(dim), None


def _source(analysis: Analysis, node: fx.Node, operand: fx.Node) -> Layout | None:
    """Return the channels of query, key or value, if they are its last dimension."""
    dim = len(analysis.shape(operand)) - 1
    layout = analysis.layout(operand) or analysis.parameter(operand, dim, node)
    if layout is not None and layout.dim != dim:
        analysis.unknown(node, "it acts on another dimension than the channels")
        return None
    return layout


def _read(analysis: Analysis, node: fx.Node, operand: fx.Node, width: Layout | None) -> None:
    """Tie key or value to the width of the attention; one that has a width of its own stays."""
    source = _source(analysis, node, operand)
    if source is not None:
        analysis.contract(node, source)
    if width is None and source is not None:
        remedy = f"leave kdim and vdim away, or {BY_HAND}"
        why = f"{node.target} reads it with a width of its own (kdim, vdim)"
        source.freeze(Reason(why, place_of(node), remedy))
    elif width is not None and source is not None:
        unify(width.segments, source.segments, str(node.target))
    elif width is not None:
        width.freeze(f"{node.target} reads {analysis.why_it_stays(operand)}")


def _products(
    analysis: Analysis, node: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node
) -> int:
    """Return the multiply-adds, for one example, whose number follows the width of the heads alone.

    They are of query and key, of scores and values, and of what is read with a width of its own.
    """
    module = analysis.module(node)
    assert isinstance(module, nn.MultiheadAttention)
    along = 1 if module.batch_first and len(analysis.shape(key)) == 3 else 0
    keys = analysis.shape(key)[along] + (module.bias_k is not None) + int(module.add_zero_attn)
    products = 2 * prod(analysis.shape(query)) * keys
    if not module._qkv_same_embed_dim:
        products += int(module.embed_dim) * sum(prod(analysis.shape(each)) for each in (key, value))
    return products // analysis.batches.get(node, 1)


def _freeze_scores(analysis: Analysis, node: fx.Node, made: Layout) -> None:
    """Freeze the width where forward reads more than what the attention makes."""
    first = [u for u in node.users if u.target is operator.getitem and u.args[1] == 0]
    if len(first) < len(node.users):
        why = f"forward reads the scores of {analysis.describe(node)}, too"
        made.freeze(Reason(why, place_of(node), BY_HAND))

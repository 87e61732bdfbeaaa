"""The multiply-adds of what is no layer: products that forward computes, and unknown modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import fx, nn

from branchprune.graph.channels import Layout, layouts_in
from branchprune.graph.nodes import WHERE, argument
from branchprune.graph.numbering import Numbering
from branchprune.graph.rules.elementwise import opaque as not_looked_into
from branchprune.graph.rules.registry import module_rule
from branchprune.graph.state import Analysis
from branchprune.graph.structure import Work

Part = tuple[float, list[Layout], list[Layout]]
"""Multiply-adds, and the channels that they sum over, and those of what they make."""


def is_counted(module: nn.Module) -> bool:
    """Return whether the multiply-adds of a called module are not known from its widths."""
    return any(True for _ in module.parameters())


def other_work(
    analysis: Analysis, graph: fx.Graph, numbering: Numbering
) -> tuple[dict[str, int], tuple[Work, ...]]:
    """Return the multiply-adds, for one example, of what is no layer whose widths are known.

    Returns:
        Those of the modules that the user leaves out, by path, and those of all others.
    """
    left_out: dict[str, int] = {}
    others: list[Work] = []
    for node, work in analysis.recorded.macs.items():
        name = str(node.target)
        read = [analysis.batches[n] for n in node.all_input_nodes if n in analysis.batches]
        macs = work // (read[0] if read else 1) if node.graph is graph else 0
        if node.op != "call_module":
            owner = str(node.meta.get(WHERE, ""))
            for share, *axes in _parts(analysis, node):
                summed, made = (tuple(numbering.pieces(x.segments) for x in each) for each in axes)
                others.append(Work(owner, share * macs, summed, made))
        elif _is_left_out(analysis, analysis.module(node)):
            left_out[name] = left_out.get(name, 0) + macs
        elif not any(name in k for k in (analysis.linears, analysis.channelwise, analysis.twins)):
            others.append(Work(name, macs))
    return left_out, tuple(others)


def _is_left_out(analysis: Analysis, module: nn.Module) -> bool:
    left_out = module in analysis.opaque or module_rule(module) is not_looked_into
    return left_out and is_counted(module)


def _parts(analysis: Analysis, node: fx.Node) -> Iterator[Part]:
    """Yield the shares of the multiply-adds of a function, which add up to 1.

    A product has as many as the product of the sizes of all its dimensions, of those that it sums
    over and of those of its output. Attention is two products, of query and key, and with values.
    """
    summed = [*analysis.contractions.get(node, ())]
    made = [*layouts_in(analysis.values.get(node))]
    if node.target is not F.scaled_dot_product_attention:
        yield 1.0, summed, made
        return
    query, value = argument(node, 0, "query"), argument(node, 2, "value")
    *_, last = range(len(analysis.shape(query)))
    widths = [analysis.shape(operand)[last] for operand in (query, value)]
    keys, ends = ([x for x in summed if (x.dim == last) is end] for end in (False, True))
    queries, values = ([x for x in made if (x.dim == last) is end] for end in (False, True))
    yield widths[0] / sum(widths), keys + ends, queries
    yield widths[1] / sum(widths), keys, queries + values

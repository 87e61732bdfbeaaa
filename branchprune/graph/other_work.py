"""The multiply-adds of what is no layer: products that forward computes, and unknown modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from branchprune.graph.nodes import WHERE
from branchprune.graph.numbering import Numbering
from branchprune.graph.rules.elementwise import opaque as not_looked_into
from branchprune.graph.rules.registry import module_rule
from branchprune.graph.state import Analysis
from branchprune.graph.structure import Work


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
        if node.graph is not graph:
            continue
        name = str(node.target)
        macs = work // analysis.batches.get(node, 1)
        if node.op != "call_module":
            others += _of_function(analysis, node, macs, numbering)
        elif _is_left_out(analysis, analysis.module(node)):
            left_out[name] = left_out.get(name, 0) + macs
        elif not any(name in k for k in (analysis.linears, analysis.channelwise, analysis.twins)):
            others.append(Work(name, macs))
    return left_out, tuple(others)


def _is_left_out(analysis: Analysis, module: nn.Module) -> bool:
    left_out = module in analysis.opaque or module_rule(module) is not_looked_into
    return left_out and is_counted(module)


def _of_function(
    analysis: Analysis, node: fx.Node, macs: int, numbering: Numbering
) -> Iterator[Work]:
    owner = str(node.meta.get(WHERE, ""))
    products = analysis.products.get(node, ())
    if not products:
        reads = any(analysis.layout(each) for each in node.all_input_nodes)
        yield Work(owner, macs, is_known=not reads)
    for each in products:
        summed = tuple(numbering.pieces(layout.segments) for layout in each.summed)
        made = numbering.pieces(each.made.segments) if each.made else ()
        yield Work(owner, each.share * macs, summed, made)

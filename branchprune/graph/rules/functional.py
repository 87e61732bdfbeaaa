"""Rule of the functions that convolve or multiply with a weight that forward itself reads.

`F.conv2d(x, self.weight)` makes channels and reads them as a layer does. Its weight has no linear
ends: the branch has a narrow weight of its own, cut along both axes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from branchprune.graph.channels import Channels, Known, Layout, Segment, unify
from branchprune.graph.layer_records import Product
from branchprune.graph.nodes import argument
from branchprune.graph.rules.unlisted import unlisted
from branchprune.graph.state import Analysis

GROUPS = 6
"""Place of the argument `groups` of a convolution, transposed or not."""


def functional(analysis: Analysis, node: fx.Node) -> Known:
    """A convolution or product with a weight that forward reads, as `F.conv2d` or `F.linear`.

    One with groups, such as a blur of each channel, is tried out.
    """
    name = str(getattr(node.target, "__name__", node.target))
    operand, weight = analysis.operand(node), argument(node, 1, "weight")
    if node.target is not F.linear and argument(node, GROUPS, "groups", default=1) != 1:
        return unlisted(analysis, node)
    dim = len(analysis.shape(node)) - 1 if node.target is F.linear else 1
    axes = _axes(analysis, node, weight, *((1, 0) if "transpose" in name else (0, 1)))
    if axes is None:
        remedy = "use a parameter of the model, or a layer of torch.nn"
        return analysis.unknown(node, "its weight is computed", remedy)
    outputs, inputs = axes
    layout = analysis.layout(operand)
    if layout is None or layout.dim != dim:
        why = f"{analysis.describe(node)} reads {analysis.why_it_stays(operand)}"
        inputs.freeze(why)
        analysis.freeze_inputs(node, why)
    else:
        unify(layout.segments, inputs.segments, node.name)
        analysis.contract(node, layout)
    analysis.products[node] = (Product(1.0, (inputs,), outputs),)
    _tie_bias(analysis, node, outputs)
    return outputs.at(dim)


def _axes(
    analysis: Analysis, node: fx.Node, weight: object, made: int, read: int
) -> tuple[Layout, Layout] | None:
    """Return the channels that a weight makes and those that it reads; None: they cannot follow."""
    name = str(weight.target) if isinstance(weight, fx.Node) else ""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or name not in analysis.readable:
        return None
    shape = analysis.shape(weight)
    if name not in analysis.parameters:
        channels = Channels(shape[made])
        analysis.channels.append((name, channels))
        source = Channels(shape[read], free=True)
        analysis.parameters[name] = {
            made: Layout(made, (Segment(channels),)),
            read: Layout(read, (Segment(source),)),
        }
    axes = analysis.parameters[name]
    if [*axes] != [made, read]:
        return None
    analysis.readers.add((weight, node))
    return axes[made], axes[read]


def _tie_bias(analysis: Analysis, node: fx.Node, outputs: Layout) -> None:
    """Tie the bias to the channels that it is added to."""
    bias = argument(node, 2, "bias")
    if not isinstance(bias, fx.Node):
        return
    layout = analysis.layout(bias) or analysis.parameter(bias, 0, node)
    if layout is None:
        outputs.freeze(f"the bias of {analysis.describe(node)} is computed")
    else:
        unify(outputs.segments, layout.segments, node.name)

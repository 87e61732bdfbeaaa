"""Rules of the operations that make a tensor of a shape: constants, and numbers drawn at random.

What they draw is one number an entry, all alike: a narrow tensor of them is as good as part of a
wide one, and the collapsed model draws what the branch draws.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from branchprune.graph.channels import Layout
from branchprune.graph.nodes import argument, measured, measured_tensor
from branchprune.graph.state import Analysis


def made(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A tensor of given sizes: a dimension as long as another's channels has the same ones."""
    whole = measured_tensor(_sizes(node))
    if whole is not None:
        return analysis.layout(whole)
    sizes = _sizes(node)
    found: list[Layout] = []
    for dim, size in enumerate(sizes if isinstance(sizes, list | tuple) else [sizes]):
        tensor, counted = measured(size) or (None, 0)
        layout = tensor and analysis.layout(tensor)
        if tensor and layout and layout.dim == counted % len(analysis.shape(tensor)):
            found.append(layout.at(dim))
    return found[0] if len(found) == 1 else None


def _sizes(node: fx.Node) -> Any:
    """Return the sizes that a tensor is asked for: a list, or the node of a whole shape."""
    first = node.op == "call_method"  # whose first argument is a tensor of the wanted type
    given = argument(node, int(first), "size")
    if isinstance(given, list | tuple) or measured_tensor(given) is not None:
        return given
    return [size for size in node.args[first:] if isinstance(size, int | fx.Node)]

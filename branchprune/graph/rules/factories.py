"""Rule of the factories, which make a tensor of given sizes: constants, or numbers drawn at random.

What they draw is one number an entry, all alike: a narrow tensor of them is as good as part of a
wide one, and the collapsed model draws what the branch draws.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from branchprune.graph.channels import Layout
from branchprune.graph.counted_sizes import counted_by
from branchprune.graph.nodes import measured, measured_tensor
from branchprune.graph.state import Analysis


def factory(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A tensor of given sizes: a dimension as long as another's channels has the same ones."""
    sizes = _sizes(node)
    whole = measured_tensor(sizes)
    if whole is not None:
        return analysis.layout(whole)
    nodes = [(dim, size) for dim, size in enumerate(sizes) if isinstance(size, fx.Node)]
    found = [(dim, size, layout) for dim, size in nodes for layout in counted_by(analysis, size)]
    layouts = [layout.at(dim) for dim, _, layout in found]
    plain = all(measured(size) for _, size, _ in found)
    return layouts[0] if len(layouts) == 1 and plain else None


def _sizes(node: fx.Node) -> Any:
    """Return the sizes that a tensor is asked for: a list, or the node of a whole shape."""
    given = [*node.args[node.op == "call_method" :], *node.kwargs.values()]
    listed = [a for a in given if isinstance(a, list | tuple) or measured_tensor(a) is not None]
    return listed[0] if listed else given[: len(node.args)]

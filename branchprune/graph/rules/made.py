"""Rules of the operations that make a tensor of a shape: constants, and numbers drawn at random.

What they draw is one number an entry, all alike: a narrow tensor of them is as good as part of a
wide one, and the collapsed model draws what the branch draws.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from branchprune.graph.channels import Layout
from branchprune.graph.nodes import measured, measured_tensor, sources
from branchprune.graph.state import Analysis


def made(analysis: Analysis, node: fx.Node) -> Layout | None:
    """A tensor of given sizes: a dimension as long as another's channels has the same ones."""
    sizes = _sizes(node)
    whole = measured_tensor(sizes)
    if whole is not None:
        return analysis.layout(whole)
    found = {dim: _counted(analysis, size) for dim, size in enumerate(sizes)}
    layouts = [layout.at(dim) for dim, counted in found.items() for layout in counted]
    plain = all(measured(sizes[dim]) for dim, counted in found.items() if counted)
    return layouts[0] if len(layouts) == 1 and plain else None


def _counted(analysis: Analysis, size: Any) -> list[Layout]:
    """Return the layouts whose channels a number counts, or from whose number it follows."""
    if not isinstance(size, fx.Node):
        return []
    read = [(analysis.layout(n), n, dim) for n, dim in sources(size, analysis.is_tensor)]
    return [
        layout
        for layout, tensor, dim in read
        if layout is not None and layout.dim == dim % len(analysis.shape(tensor))
    ]


def _sizes(node: fx.Node) -> Any:
    """Return the sizes that a tensor is asked for: a list, or the node of a whole shape."""
    given = [*node.args[node.op == "call_method" :], *node.kwargs.values()]
    listed = [a for a in given if isinstance(a, list | tuple) or measured_tensor(a) is not None]
    return listed[0] if listed else given[: len(node.args)]

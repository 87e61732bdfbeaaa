"""Sizes of tensors that count channels, and numbers that are computed from them."""

from __future__ import annotations

from torch import fx

from branchprune.graph.channels import Layout
from branchprune.graph.nodes import sources
from branchprune.graph.state import Analysis


def counted(analysis: Analysis, tensor: fx.Node, dim: int) -> Layout | None:
    """Return the channels that a size of a tensor counts; None if it counts none.

    Args:
        analysis: The walk.
        tensor: The tensor.
        dim: The dimension whose size it is; from the end, if it is negative.
    """
    layout = analysis.layout(tensor)
    counts = layout is not None and layout.dim == dim % len(analysis.shape(tensor))
    return layout if counts else None


def counted_by(analysis: Analysis, number: fx.Node) -> list[Layout]:
    """Return the channels from whose counts a node computes a number."""
    found = [counted(analysis, *size) for size in sources(number, analysis.is_tensor)]
    return [layout for layout in found if layout is not None]

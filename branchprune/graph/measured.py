"""What a node reads of a tensor: its numbers, or no more than its size, and what that counts."""

from __future__ import annotations

from torch import fx

from branchprune.graph.channels import Layout
from branchprune.graph.nodes import asked_for_its_type, sources
from branchprune.graph.state import Analysis
from branchprune.graph.tracing.guards import same_length

SIZES = (getattr, same_length, "size", "dim", "numel")
"""Functions and methods that ask for a size, or for another attribute of a tensor."""


def is_measured(node: fx.Node, operand: fx.Node) -> bool:
    """Return whether a node reads nothing of a tensor but its size, dtype or device."""
    return node.target in SIZES or operand is asked_for_its_type(node)


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

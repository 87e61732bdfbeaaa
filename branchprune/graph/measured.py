"""What a node reads of a tensor: its numbers, or no more than its size, dtype or device."""

from __future__ import annotations

from torch import fx

from branchprune.graph.nodes import asked_for_its_type
from branchprune.graph.tracing.guards import same_length

SIZES = (getattr, same_length, "size", "dim", "numel")
"""Functions and methods that ask for a size, or for another attribute of a tensor."""


def is_measured(node: fx.Node, operand: fx.Node) -> bool:
    """Return whether a node reads nothing of a tensor but its size, dtype or device."""
    return node.target in SIZES or operand is asked_for_its_type(node)

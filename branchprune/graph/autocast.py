"""Regions of `torch.autocast` inside forward: kept with each node, and written as `with` blocks.

A node knows only the regions that forward itself enters. What lies outside of them follows whoever
calls the model, such as a trainer with mixed precision, as in the user's own forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

REGIONS = "regions"
"""Key in the `meta` of a node: the regions of autocast in which forward computes it."""


@dataclass(frozen=True)
class Region:
    """What `torch.autocast` was given.

    Attributes:
        device_type: Such as "cuda".
        dtype: What is computed in; None: what holds around the region.
        enabled: Whether it casts.
        cache_enabled: Whether cast weights are kept; None: what holds around the region.
    """

    device_type: str
    dtype: torch.dtype | None
    enabled: bool
    cache_enabled: bool | None


def regions_of(node: fx.Node) -> tuple[Region, ...]:
    """Return the regions in which forward computes a node, the outermost first."""
    found: tuple[Region, ...] = node.meta.get(REGIONS, ())
    return found


def set_regions(node: fx.Node, regions: tuple[Region, ...]) -> None:
    """Note the regions in which a node is computed.

    Args:
        node: The node.
        regions: The regions, the outermost first.
    """
    node.meta[REGIONS] = regions


def has_regions(graph: fx.Graph) -> bool:
    """Return whether forward enters autocast itself."""
    return any(map(regions_of, graph.nodes))


def same_regions(a: fx.Graph, b: fx.Graph) -> bool:
    """Return whether two graphs of the same nodes compute these in the same regions."""
    return [*map(regions_of, a.nodes)] == [*map(regions_of, b.nodes)]


def begin(
    device_type: str, dtype: torch.dtype | None, enabled: bool, cache_enabled: bool | None
) -> torch.autocast:
    """Return what enters a region; see `Region`."""
    return torch.autocast(device_type, dtype, enabled, cache_enabled)


def end() -> None:
    """End the innermost region."""


def mark(graph: fx.Graph) -> tuple[list[str], list[str]]:
    """Add nodes where regions begin and end.

    Args:
        graph: A graph whose code is about to be written; it is changed.

    Returns:
        The names of the nodes that begin one, and of those that end one.
    """
    begins: list[str] = []
    ends: list[str] = []
    entered: tuple[Region, ...] = ()
    for node in tuple(graph.nodes):
        if node.op == "placeholder":
            continue
        wanted = () if node.op == "output" else regions_of(node)
        common = _common(entered, wanted)
        with graph.inserting_before(node):
            ends += [graph.call_function(end).name for _ in entered[common:]]
            begins += [_begun(graph, region).name for region in wanted[common:]]
        entered = wanted
    return begins, ends


def _begun(graph: fx.Graph, region: Region) -> fx.Node:
    given = (region.device_type, region.dtype, region.enabled, region.cache_enabled)
    return graph.call_function(begin, given)


def _common(a: Sequence[Region], b: Sequence[Region]) -> int:
    """Return how many regions two places have in common."""
    differing = (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(a), len(b)))


def with_blocks(source: str, begins: Sequence[str], ends: Sequence[str]) -> str:
    """Return code in which the lines of marks are `with` blocks.

    Args:
        source: The code of a graph.
        begins: The names of the nodes that begin a region.
        ends: Those of the nodes that end one.
    """
    lines, depth = [], 0
    for line in source.splitlines():
        name, _, rest = line.strip().partition(" = ")
        if name in ends:
            depth -= 1
            continue
        begun = name in begins
        code = f"    with {re.sub(r';.*', '', rest)}:" if begun else line
        lines.append("    " * depth + code if code else code)
        depth += begun
    return "\n".join(lines)

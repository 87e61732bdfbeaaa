"""Blocks of grouped layers: each must keep as many channels as the others.

A grouped convolution makes and reads its channels in blocks of one width, and so does GroupNorm.
Where several layers' channels stand in one block, or those of one layer in several, the numbers
that are kept must still agree. What stands in every block agrees by itself; the rest is tied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from branchprune.graph.channels import (
    Channels,
    Layout,
    Segment,
    cut,
    divided_blocks,
    resolve,
    unify,
)
from branchprune.graph.reasons import Reason
from branchprune.graph.state import Analysis


def even_out(analysis: Analysis) -> None:
    """Tie channels so that all blocks of each grouped layer keep equally many.

    Args:
        analysis: The walk, which has met every layer.
    """
    settled: set[Channels] = set()
    _even_divided(analysis, settled)
    for name, layer in (analysis.linears | analysis.twins).items():
        groups = int(getattr(analysis.model.get_submodule(name), "groups", 1))
        if layer.inputs is not None and groups > 1:
            _even_inputs(layer.inputs, groups, f"grouped convolution {name}")
    for layout, groups, name in analysis.blocks:
        _even_inputs(layout, groups, name)
    _even_divided(analysis, settled)


def _even_divided(analysis: Analysis, settled: set[Channels]) -> None:
    """Tie the parts of channels that were divided between blocks, which may divide others."""
    while new := {
        root: (name, parts)
        for name, channels in reversed(analysis.channels)
        for root, parts in divided_blocks(channels).items()
        if root not in settled
    }:
        for name, parts in new.values():
            _tie([[part] for part in parts], name)
        settled.update(new)


def _even_inputs(inputs: Layout, groups: int, where: str) -> None:
    """Tie what a grouped layer reads."""
    segments = resolve(inputs.segments)
    if all(segment.channels.reason for segment in segments):
        return
    each, rest = divmod(groups, len(segments))
    if len(set(segments)) == 1 and not rest and segments[0].channels.width % each == 0:
        inputs.require_blocks(each)
        return
    rows = cut(segments, inputs.size // groups)
    if rows is None:
        inputs.freeze(f"a block of {where} ends within a channel")
    else:
        _tie(rows, where)


def _tie(rows: Sequence[Sequence[Segment]], where: str) -> None:
    """Tie the channels of some rows, but for those that stand in both, to those of the first."""
    for row in rows[1:]:
        first, other = Counter(resolve(rows[0])), Counter(resolve(row))
        left, right = _in_order(first - other), _in_order(other - first)
        reasons = [s.channels.reason for s in left + right if s.channels.reason]
        if not reasons:
            unify(left, right, where)
            continue
        why = (
            f"each block of {where} keeps as many, and one holds channels that stay ({reasons[0]})"
        )
        for segment in left + right:
            segment.channels.freeze(Reason(reasons[0]).put(why))


def _in_order(segments: Counter[Segment]) -> list[Segment]:
    """Return segments by size, so that equal ones meet."""
    return sorted(segments.elements(), key=lambda segment: (segment.repeat, segment.size))

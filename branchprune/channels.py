"""Channel groups: which channel dimensions must keep the same width.

A tensor's channel dimension is described by a `Layout`: the index of the dimension and the
*segments* it is made of, in order. A segment is a set of channels, each of which occupies
`repeat` consecutive entries (after a flatten of `C x H x W` the repeat is `H * W`). Element-wise
operations unify segments; a union-find with splitting keeps the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import lcm


@dataclass(eq=False)
class Channels:
    """A set of `width` channels that come out of some linear layer.

    Attributes:
        width: Number of channels.
        blocks: The kept width must be divisible by this (grouped convolutions, GroupNorm).
        reason: Why the width has to stay, or None if it may shrink.
    """

    width: int
    blocks: int = 1
    reason: str | None = None
    _parent: Channels | None = field(default=None, repr=False)
    _parts: tuple[Channels, Channels] | None = field(default=None, repr=False)

    def find(self) -> Channels:
        """Return the representative of the group that these channels belong to."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def freeze(self, reason: str) -> None:
        """Keep the width of the whole group; the first reason wins."""
        root = self.find()
        root.reason = root.reason or reason
        for part in root._parts or ():
            part.freeze(reason)


@dataclass(frozen=True)
class Segment:
    """A run of channels inside a channel dimension, `width * repeat` entries long."""

    channels: Channels
    repeat: int = 1

    @property
    def size(self) -> int:
        """Number of entries of the dimension that the segment covers."""
        return self.channels.width * self.repeat


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor are: dimension `dim`, made of `segments`."""

    dim: int
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Size of the channel dimension."""
        return sum(segment.size for segment in self.segments)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape has these channels."""
        return self.dim < len(shape) and shape[self.dim] == self.size

    def at(self, dim: int) -> Layout:
        """Return the same channels at another dimension."""
        return Layout(dim, self.segments)

    def repeated(self, times: int) -> Layout:
        """Return the layout in which every entry became `times` consecutive entries."""
        return Layout(self.dim, tuple(Segment(s.channels, s.repeat * times) for s in self.segments))

    def freeze(self, reason: str) -> None:
        """Freeze every group in the layout."""
        for segment in self.segments:
            segment.channels.freeze(reason)


def resolve(segments: Iterable[Segment]) -> list[Segment]:
    """Replace each segment by the representatives of its group, following splits."""
    resolved: list[Segment] = []
    for segment in segments:
        root = segment.channels.find()
        if root._parts is None:
            resolved.append(Segment(root, segment.repeat))
        else:
            resolved += resolve(Segment(part, segment.repeat) for part in root._parts)
    return resolved


def unify(first: Sequence[Segment], second: Sequence[Segment], where: str) -> None:
    """Tie two channel dimensions of equal size together, channel by channel.

    Groups are split where the segments do not line up; what cannot be split is frozen.

    Args:
        first: Segments of one dimension.
        second: Segments of the other.
        where: The layer or operation, for the reason.
    """
    left, right = resolve(first), resolve(second)
    while left and right:
        a, b = left[0], right[0]
        if a.repeat != b.repeat:
            break
        if a.channels is b.channels:
            left, right = left[1:], right[1:]
        elif a.channels.width == b.channels.width:
            _merge(a.channels, b.channels)
            left, right = resolve(left[1:]), resolve(right[1:])
        else:
            large, small = (a, b) if a.size > b.size else (b, a)
            if large.channels.blocks > 1:
                break
            _split(large.channels, small.channels.width)
            left, right = resolve(left), resolve(right)
    for segment in left + right:
        segment.channels.freeze(f"channels of different structure meet in {where}")


def _merge(keep: Channels, other: Channels) -> None:
    other._parent = keep
    keep.blocks = lcm(keep.blocks, other.blocks)
    keep.reason = keep.reason or other.reason


def _split(root: Channels, width: int) -> None:
    root._parts = (
        Channels(width, reason=root.reason),
        Channels(root.width - width, reason=root.reason),
    )

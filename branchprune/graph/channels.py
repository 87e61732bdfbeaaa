"""Channel groups: which channel dimensions must keep the same width.

A tensor's channel dimension is described by a `Layout`: the index of the dimension and the
*segments* it is made of, in order. A segment is a set of channels, each of which occupies
`repeat` consecutive entries (after a flatten of `C x H x W` the repeat is `H * W`). Element-wise
operations unify segments; a union-find with splitting keeps the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm

from branchprune.graph.provenance import Interleaved, Origin, Own, Repeated

STRATA = 4
"""Parts of a shuffled group that start with equally many channels: cuts in halves and quarters
behind the shuffle then find in the narrow half what is in the wide one."""


@dataclass(eq=False)
class Channels:
    """A set of `width` channels that come out of some linear layer.

    Attributes:
        width: Number of channels.
        blocks: The kept width must be divisible by this (grouped convolutions, GroupNorm).
        reason: Why the width has to stay, or None if it may shrink.
        strata: Number of equal parts of which each gives the branch as many channels to start
            from. Of 8 channels in 4 strata, half of which are kept, the branch starts from one of
            channels 0 and 1, one of 2 and 3, one of 4 and 5, and one of 6 and 7.
        free: Whether they belong to a parameter that is not tied to any layer's channels yet.
    """

    width: int
    blocks: int = 1
    reason: str | None = None
    free: bool = False
    strata: int = 1
    _parent: Channels | None = field(default=None, repr=False)
    _parts: tuple[Segment, ...] | None = field(default=None, repr=False)

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
            part.channels.freeze(reason)


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
    """Where the channels of a tensor are: dimension `dim`, made of `segments`.

    Attributes:
        dim: The channel dimension.
        segments: What it is made of, in order.
        strand: The dimension that counts the parts where a view has split the channels into
            equal ones: with (N, 6, H, W) seen as (N, 2, 3, H, W), `dim` is 2 and `strand` 1. A
            transpose of both and a flatten then are a channel shuffle. None: no such view.
        moved: Where narrow channels come from, if a shuffle or a cut has moved them.
    """

    dim: int
    segments: tuple[Segment, ...]
    strand: int | None = None
    moved: Origin | None = None

    @property
    def size(self) -> int:
        """Size of the channel dimension."""
        return sum(segment.size for segment in self.segments)

    @property
    def free(self) -> bool:
        """Whether all of it belongs to parameters that are not tied to any layer's channels."""
        return all(segment.channels.free for segment in resolve(self.segments))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape has these channels."""
        return self.dim < len(shape) and shape[self.dim] == self.size

    def at(self, dim: int) -> Layout:
        """Return the same channels at another dimension."""
        return Layout(dim, self.segments, None, self.moved)

    def permuted(self, place: Callable[[int], int]) -> Layout:
        """Return the layout after dimension d has become dimension `place(d)`."""
        strand = None if self.strand is None else place(self.strand)
        return Layout(place(self.dim), self.segments, strand, self.moved)

    @property
    def origin(self) -> Origin:
        """Where narrow channels come from."""
        return self.moved or Own(self.segments)

    def repeated(self, times: int) -> Layout:
        """Return the layout in which every entry became `times` consecutive entries."""
        if times == 1:
            return self
        segments = tuple(Segment(s.channels, s.repeat * times) for s in self.segments)
        return Layout(self.dim, segments, None, self.moved and Repeated(self.moved, times))

    def interleaved(self, count: int) -> Layout:
        """Return the layout after the entries of `count` equal parts have been taken by turns.

        The parts have the same channels, so the widths are those of before.
        """
        for segment in resolve(self.segments):
            segment.channels.strata = STRATA
        return Layout(self.dim, self.segments, None, Interleaved(self.origin, count))

    def require_blocks(self, blocks: int) -> None:
        """Let every group in the layout keep only widths divisible by a number of blocks."""
        for segment in resolve(self.segments):
            segment.channels.blocks = lcm(segment.channels.blocks, blocks)

    def freeze(self, reason: str) -> None:
        """Freeze every group in the layout."""
        for segment in self.segments:
            segment.channels.freeze(reason)


Known = Layout | tuple["Known", ...] | None
"""What is known of a value: where a tensor's channels are, or those of each tensor in a tuple."""


def layouts_in(known: Known) -> Iterator[Layout]:
    """Yield the layouts of a value's tensors."""
    if isinstance(known, tuple):
        for part in known:
            yield from layouts_in(part)
    elif known is not None:
        yield known


def resolve(segments: Iterable[Segment]) -> list[Segment]:
    """Replace each segment by the representatives of its group, following splits."""
    resolved: list[Segment] = []
    for segment in segments:
        root = segment.channels.find()
        if root._parts is None:
            resolved.append(Segment(root, segment.repeat))
        else:
            resolved += resolve(
                Segment(part.channels, part.repeat * segment.repeat) for part in root._parts
            )
    return resolved


def unify(first: Sequence[Segment], second: Sequence[Segment], where: str) -> None:
    """Tie two channel dimensions of equal size together, channel by channel.

    Groups are split where the segments do not line up; what does not go into each other is frozen.

    Args:
        first: Segments of one dimension.
        second: Segments of the other.
        where: The layer or operation, for the reason.
    """
    left, right = resolve(first), resolve(second)
    while left and right:
        left[:1], right[:1] = resolve(left[:1]), resolve(right[:1])  # others may have been split
        a, b = left[0], right[0]
        if a == b:
            left, right = left[1:], right[1:]
        elif a.repeat != b.repeat:
            fine, coarse = (a, b) if a.repeat < b.repeat else (b, a)
            if coarse.repeat % fine.repeat or not _fuse(
                fine.channels, coarse.repeat // fine.repeat
            ):
                break
        elif a.channels.width == b.channels.width:
            _merge(a.channels, b.channels)
        else:
            large, small = (a, b) if a.size > b.size else (b, a)
            _split(large.channels, small.channels.width)
    for segment in left + right:
        segment.channels.freeze(f"channels of different structure meet in {where}")


def cut(segments: Iterable[Segment], size: int) -> list[list[Segment]] | None:
    """Cut a channel dimension into parts of `size` entries each.

    Returns:
        The segments of each part; None if a cut falls into a channel.
    """
    whole = resolve(segments)
    return divided(whole, [size] * (sum(segment.size for segment in whole) // size))


def divided(segments: Iterable[Segment], sizes: Sequence[int]) -> list[list[Segment]] | None:
    """Cut a channel dimension into parts of these many entries.

    Returns:
        The segments of each part; None if a cut falls into a channel.
    """
    parts: list[list[Segment]] = []
    rest = resolve(segments)
    for size in sizes:
        parts.append([])
        room = size
        while room:
            segment = rest[0]
            if segment.size <= room:
                parts[-1].append(segment)
                rest, room = rest[1:], room - segment.size
            elif room % segment.repeat:
                return None
            else:
                _split(segment.channels, room // segment.repeat)
            rest = resolve(rest)
    return [resolve(part) for part in parts]


def fused(segments: Iterable[Segment], times: int) -> list[Segment] | None:
    """Return the segments after each run of `times` entries has become one entry.

    Returns:
        The segments, their channels tied in runs where need be; None if they do not fall into runs.
    """
    shorter = []
    for segment in resolve(segments):
        common = gcd(segment.repeat, times)
        if times // common > 1 and not _fuse(segment.channels, times // common):
            return None
        shorter += [
            Segment(part.channels, part.repeat * segment.repeat // times)
            for part in resolve([Segment(segment.channels)])
        ]
    return shorter


def _merge(keep: Channels, other: Channels) -> None:
    other._parent = keep
    keep.blocks = lcm(keep.blocks, other.blocks)
    keep.reason = keep.reason or other.reason
    keep.free = keep.free and other.free
    keep.strata = max(keep.strata, other.strata)


def _split(root: Channels, width: int) -> None:
    """Divide a group in two behind `width` channels; one of several blocks between blocks first."""
    if root.blocks > 1:
        size = root.width // root.blocks
        left = 1 if width % size else gcd(width // size, root.blocks)
        root._parts = tuple(
            Segment(Channels(left * size, left, root.reason, root.free, root.strata))
            for _ in range(root.blocks // left)
        )
    else:
        widths = (width, root.width - width)
        root._parts = tuple(Segment(Channels(w, 1, root.reason, root.free)) for w in widths)


def divided_blocks(made: Channels) -> dict[Channels, tuple[Segment, ...]]:
    """Return the groups that were divided between blocks, each with its parts.

    The parts must stay equally wide. `made` are the channels of a layer, as they were before.
    """
    found: dict[Channels, tuple[Segment, ...]] = {}
    rest = [made.find()]
    for root in rest:
        parts = root._parts or ()
        if len(parts) > 1 and root.blocks > 1:
            found[root] = parts
        rest += [part.channels.find() for part in parts]
    return found


def _fuse(root: Channels, times: int) -> bool:
    """Tie each run of `times` channels of a group into one, unless blocks stand against it."""
    if root.width // root.blocks % times or root.width % times:
        return False
    coarse = Channels(root.width // times, root.blocks, root.reason, root.free)
    root._parts = (Segment(coarse, times),)
    return True

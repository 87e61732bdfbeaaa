"""Where narrow channels come from, once a shuffle or a cut has moved them.

A narrow tensor made by a selection holds some channels of the wide tensor, in order. Behind a
channel shuffle it holds them in another order, and behind a cut perhaps none of the wide part's.
An origin is a recipe for an index: for each narrow channel, the wide channel it stands for, or -1
if that is in another part. Recipes lie in each other, as `Cut(Interleaved(Own(…), 2), 0, 2)`: the
first half of a shuffle of two parts. The innermost ones, `Own`, are the leaves. An origin only
decides how a branch starts; the collapse is exact whatever the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Index = tuple[Tensor, int]
"""For each narrow entry the wide entry it stands for, and the number of wide entries."""


@dataclass(frozen=True)
class Own:
    """The channels of a layout or of pieces as they were made: those selected, in order."""

    of: Any


@dataclass(frozen=True)
class Joined:
    """A concatenation."""

    parts: tuple[Origin, ...]


@dataclass(frozen=True)
class Cut:
    """Part `number` of `count` equal parts."""

    whole: Origin
    number: int
    count: int


@dataclass(frozen=True)
class Interleaved:
    """The entries of `count` equal parts by turns."""

    whole: Origin
    count: int


@dataclass(frozen=True)
class Repeated:
    """Every entry `times` times in a row."""

    whole: Origin
    times: int


Origin = Own | Joined | Cut | Interleaved | Repeated


def converted(origin: Origin, convert: Callable[[Any], Any]) -> Origin:
    """Return an origin whose leaves are of another kind."""
    if isinstance(origin, Own):
        return Own(convert(origin.of))
    if isinstance(origin, Joined):
        return Joined(tuple(converted(part, convert) for part in origin.parts))
    whole = converted(origin.whole, convert)
    if isinstance(origin, Cut):
        return Cut(whole, origin.number, origin.count)
    if isinstance(origin, Interleaved):
        return Interleaved(whole, origin.count)
    return Repeated(whole, origin.times)


def index_of(origin: Origin, own: Callable[[Any], Index]) -> Index:
    """Work out the index.

    Args:
        origin: The recipe.
        own: The index of a leaf.
    """
    if isinstance(origin, Own):
        return own(origin.of)
    if isinstance(origin, Joined):
        return _join([index_of(part, own) for part in origin.parts])
    index, size = index_of(origin.whole, own)
    known = index >= 0
    if isinstance(origin, Cut):
        part = size // origin.count
        index = index.chunk(origin.count)[origin.number] - origin.number * part
        return torch.where((index >= 0) & (index < part), index, -1), part
    if isinstance(origin, Interleaved):
        part = size // origin.count
        moved = torch.where(known, index % part * origin.count + index // part, -1)
        return moved.view(origin.count, -1).T.flatten(), size
    entries = index[:, None] * origin.times + torch.arange(origin.times)
    return torch.where(known[:, None], entries, -1).flatten(), size * origin.times


def labels_of(origin: Origin, own: Callable[[Any], Tensor]) -> Tensor:
    """Return which channel stands at each entry of the wide tensor.

    Args:
        origin: The recipe.
        own: The labels of the channels of a leaf, an entry each.
    """
    if isinstance(origin, Own):
        return own(origin.of)
    if isinstance(origin, Joined):
        return torch.cat([labels_of(part, own) for part in origin.parts])
    labels = labels_of(origin.whole, own)
    if isinstance(origin, Cut):
        return labels.chunk(origin.count)[origin.number]
    if isinstance(origin, Interleaved):
        return labels.view(origin.count, -1).T.flatten()
    return labels.repeat_interleave(origin.times)


def _join(parts: list[Index]) -> Index:
    moved, start = [], 0
    for index, size in parts:
        moved.append(torch.where(index >= 0, index + start, -1))
        start += size
    return torch.cat(moved), start

"""Channel scores: which channels of a group the branch starts from.

A criterion is a function of a `GroupWeights` that returns one score a channel, shape (C,); the
channels with the highest scores are selected. With a selection, α = 0 at once *is* classic
pruning by that criterion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GroupWeights:
    """The weights that make the channels of one group.

    Attributes:
        name: Name of the group.
        width: Number of channels, C.
        producers: For each layer that makes the channels, its weight as a (C, n) matrix: row c
            makes channel c.
        norms: For each norm that scales the channels, its weight, shape (C,).
    """

    name: str
    width: int
    producers: tuple[Tensor, ...]
    norms: tuple[Tensor, ...]


Criterion = Callable[[GroupWeights], Tensor]


def l1(group: GroupWeights) -> Tensor:
    """Return the L1 norm of the weights that make each channel (Li et al., 2017), shape (C,)."""
    return torch.stack([weight.abs().sum(1) for weight in group.producers]).sum(0)


def l2(group: GroupWeights) -> Tensor:
    """Return the L2 norm of the weights that make each channel, shape (C,)."""
    return torch.stack([weight.square().sum(1) for weight in group.producers]).sum(0).sqrt()


def random_choice(group: GroupWeights) -> Tensor:
    """Return random scores, shape (C,): the control of every other criterion."""
    return torch.rand(group.width)


def select(scores: Tensor, kept: int, blocks: int, strata: int = 1) -> Tensor:
    """Return the indices of the best channels, in order, equally many from each block.

    Args:
        scores: One score a channel, shape (C,).
        kept: Number of channels to keep; divisible by `blocks`.
        blocks: Number of blocks that C falls into.
        strata: Number of parts that a block falls into, from which as equally many are taken as
            the numbers allow.
    """
    chosen = []
    for block, values in enumerate(scores.chunk(blocks)):
        share, start = kept // blocks, block * len(values)
        for i in range(strata):
            first, last = (len(values) * k // strata for k in (i, i + 1))
            quota = share * (i + 1) // strata - share * i // strata
            chosen.append(values[first:last].topk(quota).indices.sort().values + start + first)
    return torch.cat(chosen).cpu()


def rows_by_output(layer: nn.Module) -> Tensor:
    """Return a layer's weight as a (C, n) matrix, a row an output channel."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if getattr(layer, "transposed", False):
        groups = int(getattr(layer, "groups", 1))
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)

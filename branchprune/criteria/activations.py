"""Channel scores by activations: what layers read of each channel, example by example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.input_statistics import Statistic, not_read
from branchprune.criteria.scores import l2
from branchprune.errors import PruneError

BINS = 100
"""Of the histogram of `entropy`, between the least and the largest mean of a channel."""


@dataclass(frozen=True)
class ByActivations:
    """A criterion by a number of every map that a layer reads, summed up over the examples.

    Where several layers read a channel, the mean of what they find counts; where none does, as with
    query and key, the scores are those of `l2`.

    Attributes:
        name: What errors call it.
        statistic: The number of a map.
        summary: Of those of all examples, shape (N, C), a score a channel, shape (C,).
    """

    name: str
    statistic: Statistic
    summary: Callable[[Tensor], Tensor]

    def __call__(self, group: GroupWeights) -> Tensor:
        """Return the scores, shape (C,).

        Raises:
            PruneError: There are no batches that reach what reads the channels.
        """
        if group.ends:
            return l2(group)
        found = [each.examples for each in group.readings if each.examples is not None]
        if not found:
            raise not_read(self.name, group.name)
        return torch.stack([self.summary(each) for each in found]).nanmean(0).nan_to_num()


def statistic_of(criterion: Any) -> Statistic | None:
    """Return what a criterion asks of each example that layers read; None: nothing."""
    return getattr(criterion, "statistic", None)


def positive_share(maps: Tensor) -> Tensor:
    """Return the share of the entries of each map that are above 0, shape (N, C).

    With its mean over the examples as the score, the channels with the largest average percentage
    of zeros behind ReLU go first (APoZ, Hu, Peng, Tai, Tang, "Network trimming", 2016). What other
    activations leave below 0 counts as a zero.
    """
    return (maps > 0).flatten(2).double().mean(2)


def mean_of_map(maps: Tensor) -> Tensor:
    """Return the mean of each map (global average pooling), shape (N, C)."""
    return maps.flatten(2).double().mean(2)


def rank_of_map(maps: Tensor) -> Tensor:
    """Return the rank of each map as a matrix, height by width, shape (N, C).

    Its mean over the examples is the score of HRank (Lin et al., "HRank: Filter pruning using
    high-rank feature map", CVPR 2020), of the maps as the next layer reads them. Maps without two
    dimensions of positions are rows, of rank 0 or 1; of those with three, the last is the width.
    """
    matrices = maps.flatten(2, -2) if maps.dim() > 4 else maps.flatten(2)[:, :, None]
    found: Tensor = torch.linalg.matrix_rank(matrices.float())
    return found.double()


def histogram_entropy(means: Tensor) -> Tensor:
    """Return the entropy of the means of each channel over the examples, in nats, shape (C,).

    A channel whose mean is alike in all images tells them not apart (Luo, Wu, "An entropy-based
    pruning method for CNN compression", 2017). The histogram has 100 bins between the least and the
    largest mean of the channel, so that its scale does not matter.

    Args:
        means: Those of all examples, shape (N, C).

    Raises:
        PruneError: There is one example, of which no channel tells another.
    """
    if len(means) < 2:
        raise PruneError("init 'entropy' tells examples apart, and batches have one: give several")
    least = means.amin(0)
    span = means.amax(0) - least
    bins = ((means - least) / torch.where(span > 0, span, 1) * BINS).floor().clamp(0, BINS - 1)
    known = means.isfinite().all(0)
    counts = torch.zeros(BINS, means.shape[1], dtype=means.dtype)
    places = torch.where(known, bins, 0).long()
    counts.scatter_add_(0, places, torch.ones_like(means))
    found = torch.special.entr(counts / len(means)).sum(0)
    return torch.where(known, found, torch.nan)


def mean_of_examples(numbers: Tensor) -> Tensor:
    """Return the mean over the examples, shape (C,)."""
    return numbers.mean(0)


apoz = ByActivations("apoz", positive_share, mean_of_examples)
entropy = ByActivations("entropy", mean_of_map, histogram_entropy)
hrank = ByActivations("hrank", rank_of_map, mean_of_examples)

"""Greedy column subset selection: the channels that reconstruct best what layers read of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.input_statistics import Reading, not_read
from branchprune.criteria.scores import l2


def reconstruction(group: GroupWeights) -> Tensor:
    """Return scores by greedy column subset selection: the best channels reconstruct the others.

    Channels are picked one by one, always the one that leaves least of what the group's readers
    make of all channels unexplained: `tr(M R)`, R the covariance of the channels given those that
    are picked, M the reader's weights. It is the greedy column subset selection of Farahat et al.
    ("Greedy column subset selection for large-scale data sets", 2013) with the objective of
    channel pruning by reconstruction (ThiNet, Luo et al., 2017; He et al., 2017). What a linear
    map, `expand`, can make of channels that are kept need not be kept. Several readers count
    alike.

    Args:
        group: The weights, with readings.

    Returns:
        The scores, shape (C,): the earlier picked, the higher, of as many as are kept; of the
        others, what they would still explain.

    Raises:
        PruneError: There are no readings, though layers read the channels. (Where none does, as
            with query and key, the scores are those of `l2`.)
    """
    if group.ends:
        return l2(group)
    if not group.readings:
        raise not_read("reconstruction", group.name)
    return in_order_of_picks(group.readings, group)


def in_order_of_picks(readings: Sequence[Reading], group: GroupWeights) -> Tensor:
    """Return scores by which those channels are kept that `pick` picks, shape (C,).

    The earlier picked, the higher; those of the others are what they would still explain.

    Args:
        readings: What is to be made of the channels.
        group: The group.
    """
    picked, explained = pick(readings, group.kept)
    scores = torch.zeros(group.width, dtype=torch.double)
    scores[picked] = torch.arange(group.width, group.width - group.kept, -1, dtype=torch.double)
    rest = explained[-1]
    return torch.where(scores > 0, scores, rest / (1 + rest.max()))


def pick(
    readings: Sequence[Reading], count: int, order: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pick channels one by one, always the one that explains most of what is left; see above.

    Args:
        readings: What layers read of the channels.
        count: How many to pick.
        order: Which to pick instead, at least `count` of them.

    Returns:
        The channels in the order in which they are picked, shape (count,), and before each pick and
        after the last one what each channel would explain of what all readers make of them, as a
        share that is added up over the readers, shape (count + 1, C).
    """
    parts = [_Residual(reading, count) for reading in readings]
    width = len(readings[0].covariance)
    picked, free = torch.zeros(count, dtype=torch.long), torch.ones(width, dtype=torch.bool)
    gains = torch.zeros(count + 1, width, dtype=torch.double)
    for place in range(count + 1):
        gains[place] = torch.stack([part.gains() for part in parts]).sum(0)
        if place == count:
            break
        best = torch.where(free, gains[place], -1).argmax() if order is None else order[place]
        picked[place] = channel = int(best)
        free[channel] = False
        for part in parts:
            if part.is_open():  # of fewer samples than channels, a few picks explain all
                part.pick(channel)
    return picked, gains


class _Residual:
    """What of a reading does not follow from the channels that are picked.

    R is the covariance given those. `R = Σ − Ω Ωᵀ` with a column of Ω for each of them, and of R
    itself only the diagonals of R and `R M R` are kept (Farahat et al., 2013).

    Args:
        reading: Σ, the covariance, and M, the weights.
        picks: How many channels are picked at most.
    """

    def __init__(self, reading: Reading, picks: int) -> None:
        self.covariance, self.weights = reading.covariance, reading.weights
        made = self.covariance @ self.weights
        self.size = max(float(made.trace()), 1e-300)
        self.variance = self.covariance.diagonal().clone()
        self.least = 1e-10 * float(self.variance.mean())
        self.made = (made * self.covariance).sum(1)
        self.columns = self.covariance.new_empty(picks, len(self.variance))
        self.picked = 0

    def is_open(self) -> bool:
        """Return whether a channel is left that does not follow from those that are picked."""
        return bool((self.variance > self.least).any())

    def gains(self) -> Tensor:
        """Return what each channel would explain, as a share of all, shape (C,)."""
        known = self.variance > self.least
        return torch.where(known, self.made / self.variance, 0) / self.size

    def pick(self, channel: int) -> None:
        """Pick a channel."""
        omega = self.columns[: self.picked].T
        column = self.covariance[:, channel] - omega @ omega[channel]
        column /= column[channel].clamp_min(self.least).sqrt()
        weighted = self.weights @ column
        made = self.covariance @ weighted - omega @ (omega.T @ weighted)
        self.made += column * (column * (column @ weighted) - 2 * made)
        self.variance -= column.square()
        self.columns[self.picked] = column
        self.picked += 1

"""Channel scores by weights: which channels of a group the branch starts from.

A criterion is a function of a `GroupWeights` that returns one score a channel, shape (C,); the
channels with the highest scores are selected. With a selection, α = 0 at once *is* classic
pruning by that criterion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from branchprune.criteria.group_weights import GroupWeights
from branchprune.errors import PruneError


def l1(group: GroupWeights) -> Tensor:
    """Return the L1 norm of the weights that make each channel (Li et al., 2017), shape (C,)."""
    return torch.stack([weight.abs().sum(1) for weight in group.producers]).sum(0)


def l2(group: GroupWeights) -> Tensor:
    """Return the L2 norm of the weights that make each channel, shape (C,)."""
    return torch.stack([weight.square().sum(1) for weight in group.producers]).sum(0).sqrt()


def bn_scale(group: GroupWeights) -> Tensor:
    """Return how much the norms scale each channel (network slimming, Liu et al., 2017).

    Args:
        group: The weights. |γ| adds up over all its norms.

    Returns:
        The scores, shape (C,).

    Raises:
        PruneError: The group has no norm with a scale.
    """
    if not group.norms:
        raise PruneError(f"init 'bn_scale' needs a norm with a weight behind {group.name}")
    return torch.stack([scale.abs() for scale in group.norms]).sum(0)


def geometric_median(group: GroupWeights) -> Tensor:
    """Return how far each channel's weights are from all others (FPGM, He et al., 2019).

    A filter near the geometric median of all can be replaced by the others.

    Args:
        group: The weights. A channel that several layers make is the concatenation of its rows.

    Returns:
        The sums of the Euclidean distances, shape (C,).
    """
    rows = torch.cat(group.producers, 1).double()
    return torch.cdist(rows, rows).sum(1)


def random_choice(group: GroupWeights) -> Tensor:
    """Return random scores, shape (C,): the control of every other criterion."""
    return torch.rand(group.width)

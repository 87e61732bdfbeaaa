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


def l0(group: GroupWeights) -> Tensor:
    """Return the share of the weights that make each channel that are not 0.

    It tells channels apart where weights are exactly 0, as after a mask or a proximal step; others
    tie, and of those that do any are kept.

    Args:
        group: The weights.

    Returns:
        The scores, shape (C,), between 0 and 1.
    """
    return (torch.cat(group.producers, 1) != 0).double().mean(1)


def l1(group: GroupWeights) -> Tensor:
    """Return the L1 norm of the weights that make each channel (Li et al., 2017), shape (C,)."""
    return torch.stack([_at_least_32(weight).abs().sum(1) for weight in group.producers]).sum(0)


def l2(group: GroupWeights) -> Tensor:
    """Return the L2 norm of the weights that make each channel, shape (C,)."""
    squares = [_at_least_32(weight).square().sum(1) for weight in group.producers]
    return torch.stack(squares).sum(0).sqrt()


def linf(group: GroupWeights) -> Tensor:
    """Return the largest absolute weight that makes each channel, shape (C,)."""
    return torch.stack([weight.abs().amax(1) for weight in group.producers]).amax(0)


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
    return torch.stack([_at_least_32(scale).abs() for scale in group.norms]).sum(0)


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


def cosine(group: GroupWeights) -> Tensor:
    """Return how late each channel's weights are found to repeat those of another.

    Again and again the two channels are found between whose weights |cos| is largest, and of both
    the one is dropped that is more like all that are left, by the mean of |cos|. So one stays of
    filters that are the same up to their scale and sign, and those that are 0 go first. Ayinde,
    Inanc and Zurada ("Redundant feature pruning for accelerated inference in deep neural networks",
    2019) find redundant filters by cosines, too, but cluster them and keep one of each cluster,
    however many those are; here as many stay as are asked for.

    Args:
        group: The weights. A channel that several layers make is the concatenation of its rows.

    Returns:
        The scores, shape (C,): the step at which the channel is dropped, 0 to C − 1.
    """
    rows = torch.cat(group.producers, 1).double()
    if not rows.isfinite().all():
        return torch.full((group.width,), torch.nan)
    alike = _cosines(rows).fill_diagonal_(0)
    scores = torch.zeros(group.width, dtype=torch.double)
    largest, nearest = alike.max(1)
    for step in range(group.width):
        first = int(largest.argmax())
        second = int(nearest[first])
        more = float(alike[second].clamp_min(0).sum()) >= float(alike[first].clamp_min(0).sum())
        dropped = second if more else first
        scores[dropped] = step
        alike[dropped] = alike[:, dropped] = largest[dropped] = -1  # below every |cos|
        stale = ((nearest == dropped) & (largest >= 0)).nonzero()[:, 0]
        largest[stale], nearest[stale] = alike[stale].max(1)
    return scores


def _cosines(rows: Tensor) -> Tensor:
    """Return the |cos| of all pairs of rows, 1 where one is 0: any other makes it."""
    lengths = rows.norm(dim=1)
    directions = rows / torch.where(lengths > 0, lengths, 1)[:, None]
    dead = lengths == 0
    return torch.where(dead | dead[:, None], 1.0, (directions @ directions.T).abs())


def _at_least_32(numbers: Tensor) -> Tensor:
    """Return numbers as float32 or wider: sums of squares of halves are 0, or infinite."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def random_choice(group: GroupWeights) -> Tensor:
    """Return random scores, shape (C,): the control of every other criterion."""
    return torch.rand(group.width)

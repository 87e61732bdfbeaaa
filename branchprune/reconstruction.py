"""The channels from which a linear map could best reconstruct what is read of all."""

from __future__ import annotations

import torch
from torch import Tensor

from branchprune.criteria import GroupWeights
from branchprune.errors import PruneError


def reconstruction(group: GroupWeights) -> Tensor:
    """Return scores by which the best channels are those that the others follow from most exactly.

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
        The scores, shape (C,): the earlier picked, the higher.

    Raises:
        PruneError: There are no readings.
    """
    if not group.readings:
        raise PruneError(
            f"init 'reconstruction' needs batches that reach what reads {group.name}: give attach "
            "batches of training inputs"
        )
    residuals = [reading.covariance.clone() for reading in group.readings]
    made = [_root(reading.weights) @ reading.covariance for reading in group.readings]
    least = [1e-10 * float(residual.diagonal().mean()) for residual in residuals]
    totals = [max(float((r.weights * r.covariance).sum()), 1e-300) for r in group.readings]
    scores = torch.zeros(group.width, dtype=torch.double)
    for place in range(group.width, 0, -1):
        gains = torch.zeros(group.width, dtype=torch.double)
        for residual, m, size, total in zip(residuals, made, least, totals, strict=True):
            variance = residual.diagonal()
            gains += torch.where(variance > size, m.square().sum(0) / variance, 0) / total
        pick = int(torch.where(scores > 0, -1, gains).argmax())
        scores[pick] = place
        for residual, m, size in zip(residuals, made, least, strict=True):
            if residual[pick, pick] > size:
                row = residual[pick] / residual[pick, pick]
                m -= torch.outer(m[:, pick], row)
                residual -= torch.outer(residual[:, pick].clone(), row)
    return scores


def _root(matrix: Tensor) -> Tensor:
    """Return R with `Rᵀ R` a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return root

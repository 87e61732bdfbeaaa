"""Channel scores by gradients of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from branchprune.criteria.group_weights import GroupWeights
from branchprune.errors import PruneError


def taylor(group: GroupWeights) -> Tensor:
    """Return how much the loss changes without each channel (Molchanov et al., 2019, eq. 8).

    It is `(Σ w · ∂L/∂w)²`, to first order, over all weights of a channel together: its rows in
    every layer that makes it, its scale in every norm, and their biases. (Before a norm that is
    in training mode the rows alone add up to 0, since the norm undoes their scale.) The gradients
    are those of the model that `attach` is given, of several batches their sum; a weight without
    one counts as 0.

    Args:
        group: The weights and their gradients.

    Returns:
        The scores, shape (C,).

    Raises:
        PruneError: There are no gradients.
    """
    pairs = with_gradients(
        group, "taylor", "call backward on the loss of some batches before attach"
    )
    changes = [(weight.double() * gradient).sum(1) for weight, gradient in pairs]
    return torch.stack(changes).sum(0).square()


def with_gradients(group: GroupWeights, name: str, way_out: str) -> list[tuple[Tensor, Tensor]]:
    """Return the weights that make the channels with their gradients, each of shape (C, n).

    Args:
        group: The weights; those without a gradient are left out.
        name: What errors call the criterion.
        way_out: What errors say to do.

    Raises:
        PruneError: There are no gradients.
    """
    both = zip(group.weights, group.gradients, strict=True)
    pairs = [(weight, gradient) for weight, gradient in both if gradient is not None]
    if not pairs:
        raise PruneError(f"init {name!r} needs gradients of {group.name}: {way_out}")
    return pairs

"""From scores to channels: what a criterion returns is checked, and the best are selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.criteria.group_weights import GroupWeights
from branchprune.errors import PruneError

Criterion = Callable[[GroupWeights], Tensor]
"""Scores of the channels of a group, shape (C,). One with a `statistic` gets it of each example
that layers read, in `readings`; the gradients are those of its `graded` model, if it has one."""


def graded_for(criterion: Criterion, graded: nn.Module, argument: str) -> nn.Module:
    """Return the model whose gradients a criterion goes by.

    Args:
        criterion: The criterion; `graded` of it, if it has one, comes first. That may have more
            parameters, where blocks have been left out since.
        graded: Whose gradients it goes by otherwise: the model whose channels are chosen.
        argument: What errors call the criterion.

    Raises:
        PruneError: The criterion's model lacks a parameter, or has it in another shape.
    """
    own: nn.Module | None = getattr(criterion, "graded", None)
    if own is None:
        return graded
    shapes = {name: tuple(weight.shape) for name, weight in own.named_parameters()}
    for name, weight in graded.named_parameters():
        here, there = tuple(weight.shape), shapes.get(name)
        if here != there:
            told = "missing" if there is None else f"of shape {there}"
            raise PruneError(
                f"{argument} (={criterion!r}) was made of another model: {name} is of shape {here} "
                f"here, and {told} there; make the criterion of this model"
            )
    return own


def scored(criterion: Criterion, weights: GroupWeights, argument: str) -> Tensor:
    """Return the scores of the channels of a group, shape (C,).

    Args:
        criterion: The criterion.
        weights: The group.
        argument: What errors call the criterion.

    Raises:
        PruneError: What it returns are no such scores.
    """
    scores = criterion(weights)
    name, width = weights.name, weights.width
    if not isinstance(scores, Tensor) or scores.shape != (width,):
        shape = tuple(getattr(scores, "shape", ()))
        raise PruneError(
            f"{argument} returned scores of shape {shape} for {name}: one a channel, shape "
            f"({width},), is needed"
        )
    if scores.isnan().any():
        raise PruneError(f"{argument} returned NaN scores for {name}")
    return scores


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


def left_out(scores: Tensor, kept: int, blocks: int, strata: int = 1) -> Tensor:
    """Return the indices of the channels that `select` does not keep, in order."""
    goes = torch.ones(len(scores), dtype=torch.bool)
    goes[select(scores, kept, blocks, strata)] = False
    return goes.nonzero()[:, 0]


class Remembered:
    """A criterion that remembers its scores, so that another model gets the same channels.

    Args:
        criterion: What scores; its attributes are those of the whole.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.scores: dict[str, Tensor] = {}

    def __call__(self, group: GroupWeights) -> Tensor:
        """Return the scores, shape (C,)."""
        self.scores[group.name] = self.criterion(group)
        return self.scores[group.name]

    def again(self, group: GroupWeights) -> Tensor:
        """Return the scores that a group was given, shape (C,)."""
        return self.scores[group.name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

"""Where the weights that make each channel are, so that they can be read, pulled or set to 0."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from branchprune.criteria.group_weights import group_weights
from branchprune.graph.inputs import copied
from branchprune.graph.structure import Structure


class ChannelWeights:
    """The weights that make the channels of some groups of a model, as rows of numbers.

    They are `GroupWeights.weights`: rows of layers, scales of norms, and biases.

    Args:
        model: The model, whose parameters may change afterwards, but not be replaced.
        structure: Its structure.
        groups: Indices of the groups.

    Attributes:
        places: For each group the places of a channel's weights among all parameters of the model
            one after the other, shape (C, n).
    """

    def __init__(self, model: nn.Module, structure: Structure, groups: Sequence[int]) -> None:
        self.parameters = [*model.parameters()]
        ends = accumulate(each.numel() for each in self.parameters)
        numbered = copied(model).double()  # which holds whole numbers up to 2⁵³
        with torch.no_grad():
            for parameter, end in zip(numbered.parameters(), ends, strict=True):
                numbers = torch.arange(end - parameter.numel(), end, device=parameter.device)
                parameter.copy_(numbers.view(parameter.shape))
        self.places = {}
        for group in groups:
            found = group_weights(numbered, structure, group, numbered)
            self.places[group] = torch.cat(found.weights, 1).long()

    @torch.no_grad()
    def rows(self) -> dict[int, Tensor]:
        """Return the weights of each channel as they are now, by group, shape (C, n)."""
        flat = self._flat()
        return {group: flat[places] for group, places in self.places.items()}

    @torch.no_grad()
    def pull(self, pulls: dict[int, Tensor]) -> None:
        """Add to the gradients of the weights, those that there are.

        Args:
            pulls: By group what is added, shape (C, n).
        """
        added = torch.zeros_like(self._flat())
        for group, each in pulls.items():
            added[self.places[group].flatten()] = each.flatten()
        for parameter, piece in zip(self.parameters, self._split(added), strict=True):
            if parameter.grad is not None:
                parameter.grad += piece.view(parameter.shape)

    @torch.no_grad()
    def clear(self, channels: dict[int, Tensor]) -> None:
        """Set all weights of some channels to 0, but for those that do not learn.

        Args:
            channels: By group the indices of the channels.
        """
        kept = torch.ones_like(self._flat())
        for group, each in channels.items():
            kept[self.places[group][each].flatten()] = 0
        for parameter, piece in zip(self.parameters, self._split(kept), strict=True):
            if parameter.requires_grad:  # it would never return
                parameter.mul_(piece.view(parameter.shape))

    def _flat(self) -> Tensor:
        return torch.cat([each.detach().reshape(-1) for each in self.parameters])

    def _split(self, flat: Tensor) -> Sequence[Tensor]:
        pieces: Sequence[Tensor] = flat.split([each.numel() for each in self.parameters])
        return pieces

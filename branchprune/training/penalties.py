"""Penalties that push weights, or whole channels, towards 0 while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from branchprune.criteria.channel_weights import ChannelWeights
from branchprune.errors import PruneError
from branchprune.graph.structure import Structure


class Penalty(Protocol):
    """A penalty on a model."""

    def add_gradient(self, progress: float) -> None:
        """Add its gradient to those of the parameters.

        Args:
            progress: How much of the training is over, 0 to 1.
        """


class ScalePenalty:
    """λ · Σ |γ| over all batch norms: network slimming (Liu et al., 2017).

    Args:
        model: The network.
        weight: λ.

    Raises:
        PruneError: The network has no batch norm with weights.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.weight = weight
        norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
        self.scales = [norm.weight for norm in norms if norm.weight is not None]
        if not self.scales:
            raise PruneError("sparsify.penalty (='bn_scale'): the model has no batch norm")

    def add_gradient(self, progress: float) -> None:
        """Add λ · sign(γ)."""
        _pull_to_zero(self.scales, self.weight)


class Lasso:
    """λ · Σ |w| over the weights of all layers that make or read channels, without biases.

    It makes single weights small, wherever they are (Tibshirani, 1996; Han et al., 2015, before
    they are cut); no channel goes as a whole for it.

    Args:
        model: The network.
        structure: Its structure.
        weight: λ.
    """

    def __init__(self, model: nn.Module, structure: Structure, weight: float) -> None:
        self.weight = weight
        layers = [model.get_submodule(name) for name in structure.linears]
        self.weights = [each.weight for each in layers if isinstance(each.weight, nn.Parameter)]

    def add_gradient(self, progress: float) -> None:
        """Add λ · sign(w)."""
        _pull_to_zero(self.weights, self.weight)


class GroupLasso:
    """λ · Σ √n ‖w‖₂ over all channels, w the n weights that make a channel, of all its layers.

    It makes channels go as a whole (structured sparsity learning, Wen et al., 2016), here in all
    layers that element-wise operations tie together, with scales and biases.

    Args:
        weights: Those of the channels.
        weight: λ.
    """

    def __init__(self, weights: ChannelWeights, weight: float) -> None:
        self.weights, self.weight = weights, weight

    def add_gradient(self, progress: float) -> None:
        """Add λ · √n · w / ‖w‖₂; 0 for channels that are 0."""
        pulls = {}
        for group, rows in self.weights.rows().items():
            lengths = rows.norm(dim=1, keepdim=True)
            directions = torch.where(lengths > 0, rows / lengths, 0)
            pulls[group] = self.weight * rows.shape[1] ** 0.5 * directions
        self.weights.pull(pulls)


class GrowingPenalty:
    """λ/2 · ‖w‖² of the channels that will go, λ growing from 0: GReg-1 (Wang et al., 2021).

    There λ grows by a small step every few iterations to a ceiling, and stays for a while; here it
    grows evenly until the end of the training.

    Args:
        weights: Those of the channels.
        going: By group the indices of the channels that will go.
        weight: λ at the end.
    """

    def __init__(self, weights: ChannelWeights, going: Mapping[int, Tensor], weight: float) -> None:
        self.weights, self.going, self.weight = weights, going, weight

    def add_gradient(self, progress: float) -> None:
        """Add λ · w for the present λ."""
        pulls, rows = {}, self.weights.rows()
        for group, channels in self.going.items():
            pulls[group] = torch.zeros_like(rows[group])
            pulls[group][channels] = self.weight * progress * rows[group][channels]
        self.weights.pull(pulls)


@torch.no_grad()
def _pull_to_zero(parameters: list[nn.Parameter], weight: float) -> None:
    """Add the gradient of weight · Σ |w|."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.sign(), alpha=weight)

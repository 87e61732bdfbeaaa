"""Training of the wide model with a penalty that pushes whole channels towards 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from branchprune.errors import PruneError, not_negative, whole
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import train_student
from branchprune.experiments.run.torch_pruning import make_pruner
from branchprune.graph.inputs import copied
from branchprune.planning.plan import Plan


@dataclass
class SparsifyConfig:
    """Train the wide model with a penalty, before channels are chosen.

    Args:
        epochs: Number of epochs.
        penalty: "bn_scale": the sum of |γ| of all norms (network slimming, Liu et al., 2017), or
            "group_norm": that of Torch-Pruning's GroupNormPruner (Fang et al., 2023).
        weight: Weight of the penalty.
    """

    epochs: int = 10
    penalty: Literal["bn_scale", "group_norm"] = "bn_scale"
    weight: float = 1e-4

    def __post_init__(self) -> None:
        whole("sparsify.epochs", self.epochs)
        not_negative("sparsify.weight", self.weight)

    def epochs_to_train(self, dense: nn.Module) -> list[Epoch]:
        """Return one `Epoch` per training epoch, to count its cost: of the dense model."""
        return [Epoch("sparsify", partial(copied, dense))] * self.epochs


class Penalty(Protocol):
    """A penalty on a model."""

    def add_gradient(self) -> None:
        """Add its gradient to those of the parameters."""


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

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add λ · sign(γ)."""
        for scale in self.scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.weight)


class GroupNormPenalty:
    """The penalty of Torch-Pruning's GroupNormPruner (Fang et al., 2023), by its own code.

    Args:
        model: The network.
        planned: What will be removed.
        weight: Its `reg`.
    """

    def __init__(self, model: nn.Module, planned: Plan, weight: float) -> None:
        self.model = model
        self.pruner = make_pruner("group_norm", model, planned, reg=weight)

    def add_gradient(self) -> None:
        """Add what the pruner adds."""
        self.pruner.regularize(self.model)


class _Regularize(Callback):
    """Adds the gradient of a penalty before every step."""

    def __init__(self, penalty: Penalty) -> None:
        self.penalty = penalty

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add it, once gradients are complete and unscaled."""
        self.penalty.add_gradient()


def sparsify(config: SparsifyConfig, dense: nn.Module, planned: Plan, stages: Stages) -> nn.Module:
    """Return the wide model trained further with a penalty, or what an earlier run made of it.

    Args:
        config: How long, and with which penalty.
        dense: The trained model; it is not changed.
        planned: What will be removed.
        stages: Where to train.
    """
    wide = copied(dense)
    penalty = _Regularize(make_penalty(config, wide, planned))
    return train_student(stages, "sparsify/wide", dense, wide, config.epochs, penalty)


def make_penalty(config: SparsifyConfig, model: nn.Module, planned: Plan) -> Penalty:
    """Return the penalty that a configuration asks for."""
    if config.penalty == "bn_scale":
        return ScalePenalty(model, config.weight)
    return GroupNormPenalty(model, planned, config.weight)

"""Training of the wide model with what pushes weights, or whole channels, towards 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from branchprune.criteria.channel_weights import ChannelWeights
from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.scores import l1, l2
from branchprune.criteria.selection import Criterion, left_out
from branchprune.errors import not_negative, whole
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.student import train_student
from branchprune.experiments.run.torch_pruning import make_pruner
from branchprune.graph.inputs import copied
from branchprune.planning.plan import Plan
from branchprune.training.penalties import (
    GroupLasso,
    GrowingPenalty,
    Lasso,
    Penalty,
    ScalePenalty,
)


@dataclass
class SparsifyConfig:
    """Train the wide model first with what makes channels small.

    Args:
        epochs: Number of epochs.
        penalty: "bn_scale": the sum of |γ| of all norms (network slimming, Liu et al., 2017);
            "lasso": that of |w| of all layers; "group_lasso": that of the norms of all weights that
            make a channel, in every layer that does (Wen et al., 2016); "growing": squares of the
            weights of the channels of the smallest L1 norm, more and more (GReg, Wang et al.,
            2021); "group_norm": that of Torch-Pruning's GroupNormPruner (Fang et al., 2023);
            "soft": none, but after every epoch the channels that would go by their L2 norm are set
            to 0; they learn on, and may return (soft filter pruning, He et al., 2018).
        weight: Weight of the penalty, of "growing" at the end.
    """

    epochs: int = 10
    penalty: Literal["bn_scale", "lasso", "group_lasso", "growing", "group_norm", "soft"] = (
        "bn_scale"
    )
    weight: float = 1e-4

    def __post_init__(self) -> None:
        whole("sparsify.epochs", self.epochs)
        not_negative("sparsify.weight", self.weight)

    def epochs_to_train(self, dense: nn.Module) -> list[Epoch]:
        """Return one `Epoch` per training epoch, to count its cost: of the dense model."""
        return [Epoch("sparsify", partial(copied, dense))] * self.epochs


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

    def add_gradient(self, progress: float) -> None:
        """Add what the pruner adds."""
        self.pruner.regularize(self.model)


class Regularize(Callback):
    """Adds the gradient of a penalty before every step.

    Args:
        penalty: The penalty.
    """

    def __init__(self, penalty: Penalty) -> None:
        self.penalty, self.batch = penalty, 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which batch of the epoch it is."""
        self.batch = batch_idx

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add it, once gradients are complete and unscaled."""
        # Of steps there may be several a batch; of an iterable the length is not known.
        part = self.batch / trainer.num_training_batches
        self.penalty.add_gradient((trainer.current_epoch + part) / (trainer.max_epochs or 1))


class _ZeroAfterEpochs(Callback):
    """Sets the channels that would go to 0 after every epoch (soft filter pruning)."""

    def __init__(self, model: nn.Module, planned: Plan) -> None:
        self.model, self.planned = model, planned
        self.weights = ChannelWeights(model, planned.structure, planned.pruned)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose anew, and set to 0."""
        self.weights.clear(going(self.model, self.planned, l2))


def going(model: nn.Module, planned: Plan, criterion: Criterion) -> dict[int, Tensor]:
    """Return the indices of the channels that would go by a criterion, by group."""
    found = {}
    for i in planned.pruned:
        group, kept = planned.structure.groups[i], planned.groups[i].kept
        scores = criterion(group_weights(model, planned.structure, i, model, kept=kept))
        found[i] = left_out(scores, kept, group.blocks, group.strata)
    return found


def sparsify(
    config: SparsifyConfig, dense: nn.Module, start: nn.Module, planned: Plan, stages: Stages
) -> nn.Module:
    """Return the wide model trained further with a penalty, or what an earlier run made of it.

    Args:
        config: How long, and with which penalty.
        dense: The trained model, a teacher.
        start: What is trained further, the dense model or a shallower one; it is not changed.
        planned: What will be removed.
        stages: Where to train.
    """
    wide = copied(start)
    if config.penalty == "soft":
        callback: Callback = _ZeroAfterEpochs(wide, planned)
    else:
        callback = Regularize(make_penalty(config, wide, planned))
    return train_student(stages, "sparsify/wide", dense, wide, config.epochs, callback)


def make_penalty(config: SparsifyConfig, model: nn.Module, planned: Plan) -> Penalty:
    """Return the penalty that a configuration asks for.

    Raises:
        PruneError: It cannot act on the model.
    """
    structure, weight = planned.structure, config.weight
    if config.penalty == "bn_scale":
        return ScalePenalty(model, weight)
    if config.penalty == "lasso":
        return Lasso(model, structure, weight)
    if config.penalty == "group_norm":
        return GroupNormPenalty(model, planned, weight)
    weights = ChannelWeights(model, structure, planned.pruned)
    if config.penalty == "group_lasso":
        return GroupLasso(weights, weight)
    return GrowingPenalty(weights, going(model, planned, l1), weight)

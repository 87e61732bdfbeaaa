"""The base of training tasks: a model, its optimizer, and what it learns from its teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from branchprune.errors import PruneError, not_negative, positive, whole
from branchprune.graph.import_path import function_at
from branchprune.training.batch_keys import Keys
from branchprune.training.distillation import Teacher, learn_from
from branchprune.training.mixup import Mixup

Batch = Any
"""A tuple, list or dictionary of tensors; see `Keys`."""
Stage = Literal["train", "val", "test"]
Decay = Literal["cosine", "one_cycle", "constant", "plateau"]
WARMUP = 0.2
"""Part of one cycle in which the learning rate rises."""
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True}),
    "adam": ("torch.optim.Adam", {}),
    "muon": ("branchprune.training.muon.Muon", {}),
}
"""Import paths of optimizers by name, and what they are made with."""


class Task(LightningModule, ABC):
    """A model with its optimizer; subclasses say what is lost and measured.

    Args:
        model: The network.
        optimizer: "sgd" (Nesterov momentum 0.9), "adam", "muon" (see `branchprune.training.muon`),
            or the import path of a class, such as "torch.optim.AdamW".
        optimizer_args: What else the optimizer takes, besides `lr` and `weight_decay`.
        learning_rate: Learning rate at the start of a cosine, or at the top of one cycle.
        weight_decay: Weight decay.
        undecayed: Patterns of parameter names without weight decay, such as "*.expand.*" and
            "*.reduce.*", the linear ends of the branches.
        schedule: The learning rate falls to 0 along a "cosine", rises from a 25th for a fifth of
            the training and then falls in "one_cycle", stays "constant", or is divided by 10 at a
            "plateau": where the validation loss has not fallen for `patience` epochs.
        cycle_epochs: Length of the cosine; None: the whole training.
        patience: See `schedule`.
        feature_weight: Weight of the distance between what the branches of a blended model
            compute and what the network as it is when the task is made computes at the same
            places; see `learn_from`. Training only.
        teacher: That network, where its output is needed, too; None: where its features are.
        keys: What batches and outputs are like, where they are no tuples and tensors: see `Keys`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: str = "sgd",
        optimizer_args: dict[str, Any] | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        undecayed: Sequence[str] = (),
        schedule: Decay = "cosine",
        cycle_epochs: int | None = None,
        patience: int = 5,
        feature_weight: float = 0.0,
        teacher: Teacher | None = None,
        keys: Keys | None = None,
    ) -> None:
        super().__init__()
        positive("learning_rate", learning_rate)
        not_negative("weight_decay", weight_decay)
        whole("patience", patience)
        if cycle_epochs is not None:
            whole("cycle_epochs", cycle_epochs, 1)
            if schedule != "cosine":
                raise PruneError(
                    f"cycle_epochs (={cycle_epochs}) is of the schedule 'cosine' alone"
                )
        if optimizer not in OPTIMIZERS and "." not in optimizer:
            known = ", ".join(map(repr, OPTIMIZERS))
            raise PruneError(f"optimizer (={optimizer!r}) must be {known} or an import path")
        if schedule not in get_args(Decay):
            raise PruneError(
                f"schedule (={schedule!r}) must be one of {', '.join(get_args(Decay))}"
            )
        self.model, self.keys = model, keys or Keys()
        self.optimizer, self.optimizer_args = optimizer, dict(optimizer_args or {})
        for name in ("lr", "weight_decay"):
            if name in self.optimizer_args:
                raise PruneError(
                    f"optimizer_args.{name} (={self.optimizer_args[name]}): the task has "
                    "learning_rate and weight_decay"
                )
        self.learning_rate = learning_rate
        self.weight_decay, self.undecayed = weight_decay, tuple(undecayed)
        self.schedule = schedule
        self.cycle_epochs, self.patience = cycle_epochs, patience
        if not 0 <= feature_weight < math.inf:
            raise PruneError(f"feature_weight (={feature_weight}) must be a weight of at least 0")
        self.feature_weight = feature_weight
        self.teacher = teacher or (Teacher(model, keys=keys) if feature_weight else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output, or the entry of it that `keys` names."""
        return self.keys.output_of(self.model(x))

    def configure_optimizers(self) -> Any:
        """Build the optimizer and what moves its learning rate."""
        optimizer = self.make_optimizer()
        if self.schedule == "one_cycle":
            cycle = OneCycleLR(
                optimizer,
                self.learning_rate,
                total_steps=self._cycle_steps(),
                pct_start=WARMUP,
                cycle_momentum=False,
            )
            return [optimizer], [{"scheduler": cycle, "interval": "step"}]
        if self.schedule == "cosine":
            epochs = self.cycle_epochs or self.trainer.max_epochs or 1
            return [optimizer], [CosineAnnealingLR(optimizer, max(1, epochs))]
        if self.schedule == "plateau":
            plateau = ReduceLROnPlateau(optimizer, patience=self.patience)
            return [optimizer], [{"scheduler": plateau, "monitor": "loss/val"}]
        return optimizer

    def _cycle_steps(self) -> int:
        """Return the steps of the training."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise PruneError("schedule (='one_cycle') needs to know how long the training is")
        return max(int(steps), 2)

    def make_optimizer(self) -> Optimizer:
        """Return a new optimizer of all parameters.

        Raises:
            PruneError: There is no such optimizer, or it does not take its arguments.
        """
        path, own = OPTIMIZERS.get(self.optimizer, (self.optimizer, {}))
        settings = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        settings = own | self.optimizer_args | settings
        fusable = self.optimizer in ("sgd", "adam") and "foreach" not in settings
        if fusable and next(self.parameters()).is_cuda:
            settings.setdefault("fused", True)
        make = function_at(path, "optimizer")
        try:
            optimizer: Optimizer = make(self._parameter_groups(), **settings)
        except (TypeError, ValueError) as error:
            raise PruneError(
                f"optimizer (={self.optimizer!r}), optimizer_args (={self.optimizer_args}): {error}"
            ) from error
        return optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters with weight decay, and those without."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            spared = any(fnmatchcase(name, pattern) for pattern in self.undecayed)
            (others if spared else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": others, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def check_batch(self, batch: Batch) -> None:
        """Raise PruneError for a training batch without what the task needs; here none is."""

    @abstractmethod
    def step(self, batch: Batch, stage: Stage) -> Tensor:
        """Log what is measured on a batch and return its loss."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the first batch of an epoch."""
        if batch_idx == 0:
            self.check_batch(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return self.step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self.step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a test batch."""
        self.step(batch, "test")

    def teach(
        self, x: Tensor, mix: Mixup | None = None, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the network's output, its teacher's, and what its features add to the loss.

        Args:
            x: The input.
            mix: How to mix it for the network; the teacher's output is mixed alike.
            numbers: Which examples these are, int64 (N,), for a teacher that remembers.
        """
        assert self.teacher is not None, "neither a teacher nor feature_weight"
        features = self.feature_weight > 0
        output, expected, distance = learn_from(self.teacher, self.model, x, features, mix, numbers)
        if features:
            self.log_epoch("loss/features", distance, len(x))
        return output, expected, self.feature_weight * distance

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the teacher remembers."""
        if self.teacher is not None and self.teacher.memory is not None:
            checkpoint["teacher"] = self.teacher.memory.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the teacher remember what it did."""
        if self.teacher is not None and self.teacher.memory is not None and "teacher" in checkpoint:
            self.teacher.memory.load_state_dict(checkpoint["teacher"])

    def log_epoch(self, name: str, value: Tensor, size: int) -> None:
        """Log the mean over an epoch."""
        self.log(name, value, on_step=False, on_epoch=True, batch_size=size)

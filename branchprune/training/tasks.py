"""Training tasks around a model: classification and reconstruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from branchprune.errors import PruneError, positive, whole
from branchprune.training.batch_keys import Keys
from branchprune.training.distillation import Teacher
from branchprune.training.losses import L1SSIM, distillation
from branchprune.training.mixup import Mixup
from branchprune.training.task import Batch, Decay, Stage, Task


class ClassificationTask(Task):
    """Cross-entropy; logs loss/{train,val,test} and metric/{val,test}_acc (a fraction).

    Args:
        model: The network.
        teacher_weight: Weight of the distance to the logits of the network as it is when the task
            is made, against that of the cross-entropy; 0: no distillation. Training only.
        temperature: Temperature of the distillation; None: a regression on the logits.
        remember: The teacher looks at every example so many times, in as many views, and teaches
            the mean of those logits from then on, which costs nothing; None: it always looks. The
            third entry of a training batch must say which examples these are, int64 (N,) from 0,
            the same as long as the task lives, as that of an `InMemory` does if `numbered`. The
            logits are kept as float32, in checkpoints, too. Without `feature_weight`, and in one
            process.
        mixup: α of mixup (Zhang et al., 2018), 0 for none: training examples, their classes and
            the teacher's logits for them are mixed two by two, with shares from Beta(α, α).
        optimizer: See `Task`.
        optimizer_args: See `Task`.
        learning_rate: See `Task`.
        weight_decay: See `Task`.
        undecayed: See `Task`.
        schedule: See `Task`.
        cycle_epochs: See `Task`.
        patience: See `Task`.
        feature_weight: See `Task`.
        keys: See `Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher_weight: float = 0.0,
        temperature: float | None = 4.0,
        remember: int | None = None,
        mixup: float = 0.0,
        optimizer: str = "sgd",
        optimizer_args: dict[str, Any] | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        undecayed: Sequence[str] = (),
        schedule: Decay = "cosine",
        cycle_epochs: int | None = None,
        patience: int = 5,
        feature_weight: float = 0.0,
        keys: Keys | None = None,
    ) -> None:
        if remember is not None:
            whole("remember", remember, 1)
        super().__init__(
            model,
            optimizer,
            optimizer_args,
            learning_rate,
            weight_decay,
            undecayed,
            schedule,
            cycle_epochs,
            patience,
            feature_weight,
            Teacher(model, remember, keys) if teacher_weight else None,
            keys,
        )
        if not 0 <= teacher_weight <= 1:
            raise PruneError(f"teacher_weight (={teacher_weight}) must be in [0, 1]")
        if temperature is not None:
            positive("temperature", temperature)
        if not 0 <= mixup < math.inf:
            raise PruneError(f"mixup (={mixup}) must be a number of at least 0")
        if remember and (not teacher_weight or feature_weight):
            raise PruneError(
                f"remember (={remember}) needs a teacher_weight (={teacher_weight}), and no "
                f"feature_weight (={feature_weight})"
            )
        if mixup and feature_weight:
            raise PruneError(
                f"mixup (={mixup}) and feature_weight (={feature_weight}): the features of a "
                "mixture are not known"
            )
        self.teacher_weight, self.temperature, self.mixup = teacher_weight, temperature, mixup

    def on_fit_start(self) -> None:
        """Refuse several processes, of which each would remember what it alone has seen."""
        memory = None if self.teacher is None else self.teacher.memory
        if memory is not None and self.trainer.world_size > 1:
            raise PruneError(
                f"remember (={memory.looks}): there are {self.trainer.world_size} processes"
            )

    def check_batch(self, batch: Batch) -> None:
        """Raise PruneError for a batch without numbers, if the teacher remembers."""
        memory = None if self.teacher is None else self.teacher.memory
        if memory is None:
            return
        numbers, labels = self.keys.number_of(batch), self.keys.target_of(batch)
        if (
            not isinstance(numbers, Tensor)
            or numbers.dtype != torch.long
            or numbers.shape != labels.shape[:1]
            or numbers.min() < 0
        ):
            raise PruneError(
                f"remember (={memory.looks}): training batches must have a third entry, or one "
                f"that keys.number names, int64 (N,) from 0, which examples these are (numbered: "
                f"true, of images in memory); "
                f"this is {numbers if numbers is None else type(numbers).__name__}"
            )

    def step(self, batch: Batch, stage: Stage) -> Tensor:
        """Return the loss of images (N, C, H, W) and classes (N,), and maybe numbers (N,)."""
        images, labels = self.keys.input_of(batch), self.keys.target_of(batch)
        if stage == "train":
            logits, loss = self._lesson(images, labels, self.keys.number_of(batch))
        else:
            logits = self(images)
            loss = cross_entropy(logits, labels)
        self.log_epoch(f"loss/{stage}", loss, len(images))
        if stage != "train":
            accuracy = (logits.argmax(1) == labels).float().mean()
            self.log_epoch(f"metric/{stage}_acc", accuracy, len(images))
        return loss

    def _lesson(
        self, images: Tensor, labels: Tensor, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits in training, and what is lost."""
        mix = Mixup.draw(self.mixup, images) if self.mixup else None
        if self.teacher is None:
            logits = self(mix(images) if mix else images)
            return logits, self._missed(logits, labels, mix)
        logits, expected, features = self.teach(images, mix, numbers)
        distance = distillation(logits, expected, self.temperature)
        loss = torch.lerp(self._missed(logits, labels, mix), distance, self.teacher_weight)
        return logits, loss + features

    def _missed(self, logits: Tensor, labels: Tensor, mix: Mixup | None) -> Tensor:
        missed = cross_entropy(logits, labels)
        if mix is None:
            return missed
        return torch.lerp(cross_entropy(logits, labels[mix.partner]), missed, mix.share)


class ReconstructionTask(Task):
    """L1 + SSIM between output and target; logs the loss, PSNR in dB and SSIM.

    Args:
        model: The network, images in [0, 1] in and out.
        l1_weight: Weight of the mean absolute error.
        ssim_weight: Weight of 1 − SSIM.
        window: Size of the SSIM window in pixels.
        optimizer: See `Task`.
        optimizer_args: See `Task`.
        learning_rate: See `Task`.
        weight_decay: See `Task`.
        undecayed: See `Task`.
        schedule: See `Task`.
        cycle_epochs: See `Task`.
        patience: See `Task`.
        feature_weight: See `Task`.
        keys: See `Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        l1_weight: float = 1.0,
        ssim_weight: float = 1.0,
        window: int = 11,
        optimizer: str = "adam",
        optimizer_args: dict[str, Any] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        undecayed: Sequence[str] = (),
        schedule: Decay = "cosine",
        cycle_epochs: int | None = None,
        patience: int = 5,
        feature_weight: float = 0.0,
        keys: Keys | None = None,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            optimizer_args,
            learning_rate,
            weight_decay,
            undecayed,
            schedule,
            cycle_epochs,
            patience,
            feature_weight,
            keys=keys,
        )
        self.loss = L1SSIM(l1_weight, ssim_weight, window)

    def step(self, batch: Batch, stage: Stage) -> Tensor:
        """Return the loss of reconstructing targets (N, C, H, W) from images."""
        images, targets = self.keys.input_of(batch), self.keys.target_of(batch)
        if stage == "train" and self.teacher is not None:
            output, _, features = self.teach(images)
            loss: Tensor = self.loss(output, targets) + features
        else:
            output = self(images)
            loss = self.loss(output, targets)
        self.log_epoch(f"loss/{stage}", loss, len(images))
        if stage != "train":
            errors = mse_loss(output, targets, reduction="none").mean((1, 2, 3))
            psnr = (-10 * errors.clamp_min(1e-10).log10()).mean()
            self.log_epoch(f"metric/{stage}_psnr", psnr, len(images))
            self.log_epoch(f"metric/{stage}_ssim", self.loss.ssim(output, targets), len(images))
        return loss

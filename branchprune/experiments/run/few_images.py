"""Few images, no labels: the narrow model matches the dense one on some of the training images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from branchprune.artifacts.serialization import save
from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.criteria.named import CRITERIA, GRADED, LABELLED
from branchprune.errors import PruneError, positive, whole
from branchprune.experiments.run.few_images_form import Form
from branchprune.experiments.run.finetune import reset
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.shrinking import Pruned, Setup, Untrained, at_widths
from branchprune.experiments.run.stages import Stages
from branchprune.few_images.augmentation import VIEWS
from branchprune.few_images.blended_start import Order, blended_start, robust_first
from branchprune.few_images.finishing import Averaging, recalibrate, refit
from branchprune.few_images.folder import read_folder
from branchprune.few_images.learning import Learning, batches, learn
from branchprune.few_images.pace import macs_a_step, macs_of_learning
from branchprune.few_images.student import Student
from branchprune.graph.inputs import copied
from branchprune.graph.memory_format import put_channels_last
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan

AT_ONCE = 500
"""Images that the criterion and the least squares see at a time, at most, for their memory."""
COUNTED = 20
"""Blended steps whose multiply-adds are counted: they differ from α to α."""


@dataclass
class FewImagesConfig(Untrained):
    """Match the dense model on a few images without labels.

    The criterion and its fit see these images alone, whatever numbers of batches they name.

    Args:
        images: How many training images: the first of the first epoch, as that augments them.
        steps: Steps of learning; 0: the start alone.
        batch_size: Images a step.
        learning_rate: The largest.
        form: What the comparisons vary besides; null: as `bp.compress`.
    """

    images: int = 100
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 0.01
    form: Form | None = None

    def __post_init__(self) -> None:
        whole("few_images.images", self.images, 2)
        whole("few_images.steps", self.steps)
        whole("few_images.batch_size", self.batch_size, 2)
        positive("few_images.learning_rate", self.learning_rate)

    @property
    def _form(self) -> Form:
        return self.form or Form()

    def check(self, setup: Setup, planned: Plan) -> None:
        """Look for the criterion, and at the precision; see `Algorithm`."""
        if setup.init in LABELLED:
            raise PruneError(
                f"criterion.name (={setup.criterion.name!r}) needs labels, few_images has none: "
                f"choose one of {', '.join(name for name in CRITERIA if name not in GRADED)}"
            )
        if setup.settings.precision == "16-mixed":
            raise PruneError(
                "precision (='16-mixed') is not one of few_images: set 'bf16-mixed' or '32-true'"
            )

    def seen(self, setup: Setup, stages: Stages) -> Sequence[Tensor]:
        """Return the few images; see `Algorithm`."""
        return [self._images(setup, stages)[:AT_ONCE]]

    def narrow(
        self,
        setup: Setup,
        stage: str,
        dense: nn.Module,
        wide: nn.Module,
        planned: Plan,
        stages: Stages,
    ) -> Pruned:
        """Choose, fit, learn and fold, or read what an earlier run made; see `Algorithm`."""
        path, found = setup.settings.output / stage / "small.safetensors", stages.finished(stage)
        if found is not None:
            small = at_widths(wide, planned)
            load_weights(small, path)
            return Pruned(small, planned, *found["errors"])
        images = self._images(setup, stages).to(stages.device)
        wide = copied(wide).to(stages.device).eval()
        parts = images.tensor_split(math.ceil(len(images) / AT_ONCE))
        blended = attach(wide, planned, setup.init, batches=parts)
        if setup.criterion.fit:
            blended = fit_expand(blended, parts, self._form.ridge)
        student = self._learn(setup, stage, blended, wide, images, stages)
        small = student.folded()
        errors = student.error, student.own_dtype_error(small)
        small = small.cpu()
        path.parent.mkdir(parents=True, exist_ok=True)
        save(small, path)
        stages.finish(stage, errors=errors)
        return Pruned(small, planned, *errors)

    def _images(self, setup: Setup, stages: Stages) -> Tensor:
        found: list[Tensor] = []
        while sum(map(len, found)) < self.images:
            batches = training_inputs(setup.settings.data, 2 * len(found) or 1, stages.keys)
            if len(batches) == len(found):
                raise PruneError(
                    f"few_images.images (={self.images}) is more than the "
                    f"{sum(map(len, found))} training images"
                )
            found = batches
        images = torch.cat(found)[: self.images]
        folder = self._form.folder
        return images if folder is None else self._others(folder, images, setup)

    def _others(self, folder: Path, images: Tensor, setup: Setup) -> Tensor:
        """Return images of a folder, of the size, number, mean and deviation of the training's."""
        height, width = images.shape[-2:]
        found = read_folder(folder, (height, width), grey=images.shape[1] == 1)
        if len(found) < len(images):
            raise PruneError(
                f"few_images.images (={self.images}) is more than the {len(found)} in "
                f"few_images.form.folder (={str(folder)!r})"
            )
        generator = torch.Generator().manual_seed(setup.settings.seed)
        order = torch.randperm(len(found), generator=generator)[: len(images)]
        (shift, scale), (mean, deviation) = _moments(found), _moments(images)
        return (found[order] - shift) / scale * deviation + mean

    def _how(self, setup: Setup) -> Learning:
        settings = setup.settings
        how = Learning(
            self.steps,
            self.batch_size,
            self.learning_rate,
            mixing_alpha=self._form.mixing_alpha,
            mixing=self._form.mixing,
            views=tuple(VIEWS[name] for name in self._form.views),
            match=self._form.match,
            hints_fade=self._form.hints_fade,
            error=self._form.error,
            steps_a_look=self._form.steps_a_look,
            optimizer=self._form.optimizer,
            weight_decay=self._form.weight_decay,
            seed=settings.seed,
            dtype=torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32,
        )
        return replace(how, steps=min(2, how.steps)) if settings.fast else how

    def _learn(
        self,
        setup: Setup,
        stage: str,
        blended: Blended,
        dense: nn.Module,
        images: Tensor,
        stages: Stages,
    ) -> Student:
        """Return the student that has learnt, and note what that took."""
        how, began = self._how(setup), time.perf_counter()
        macs = 0
        put_channels_last([dense, blended], images)
        before = self._form.blended
        if before is not None:
            steps = min(2, before.steps) if setup.settings.fast else before.steps
            first = replace(how, steps=steps, learning_rate=before.learning_rate)
            if before.order == "robust first":
                rank = partial(robust_first, blended, dense, images)
                macs += macs_a_step(rank, first)
                order: Order = rank(first)
            else:
                order = before.order
            start = partial(blended_start, blended, dense, images, drawn=before.drawn, order=order)
            macs += steps * macs_a_step(start, first, min(steps, COUNTED))
            blended = start(first)
        blended.alpha = 0.0
        student = Student(blended)
        if self._form.fresh:
            _forget(student)
        put_channels_last([student.model], images)
        if how.steps:
            macs += how.steps * macs_of_learning(student, dense, images, how)
        averaging = Averaging(student.parameters(), self._form.finish.average)
        learn(student, dense, images, how, averaging)
        averaging.apply()
        views = batches(images, replace(how, seed=how.seed + 1))
        recalibrate(student.model, views, self._form.finish.recalibrate)
        refit(student, dense, views, self._form.finish.refit)
        stages.records[stage] = {
            "seconds": round(time.perf_counter() - began, 1),
            "epochs": 0,
            "train_macs": macs,
            "loader_share": 0.0,
        }
        return student


def _forget(student: Student) -> None:
    """Give a student new random weights, but for the head of the dense model."""
    for name, module in student.model.named_modules():
        if name not in student.head:
            reset(module)
    for weight in student.blended.expand.parameters():
        nn.init.xavier_uniform_(weight)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, shaped as images."""
    deviation, mean = torch.std_mean(images, [0, 2, 3], keepdim=True)
    return mean, deviation

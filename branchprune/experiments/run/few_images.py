"""Few images, no labels: the narrow model matches the dense one on some of the training images."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from branchprune.artifacts.serialization import save
from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.errors import PruneError, not_negative, positive, whole
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.shrinking import Pruned, Setup, Untrained, at_widths
from branchprune.experiments.run.stages import Stages
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.matching import Match
from branchprune.few_images.pace import macs_a_step
from branchprune.few_images.student import Student
from branchprune.graph.inputs import copied
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass
class FewImagesConfig(Untrained):
    """Match the dense model on a few images without labels.

    The criterion and its fit see these images alone, whatever numbers of batches they name.

    Args:
        images: How many training images: the first of the first epoch, as that augments them.
        steps: Steps of learning; 0: the start alone.
        batch_size: Images a step.
        learning_rate: The largest, of one cycle.
        mixup: α of the Beta distribution of mixtures; 0: none.
        match: "head": what the last layers read, and outputs that are no vectors of classes;
            "outputs": these alone, or the divergence of logits.
    """

    images: int = 100
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 0.01
    mixup: float = 1.0
    match: Match = "head"

    def __post_init__(self) -> None:
        whole("few_images.images", self.images, 2)
        whole("few_images.steps", self.steps)
        whole("few_images.batch_size", self.batch_size, 2)
        positive("few_images.learning_rate", self.learning_rate)
        not_negative("few_images.mixup", self.mixup)

    def check(self, setup: Setup, planned: Plan) -> None:
        """Look for the criterion; see `Algorithm`."""
        setup.criterion.init()

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
        blended = attach(wide, planned, setup.criterion.init(), batches=[images])
        if setup.criterion.fit:
            blended = fit_expand(blended, [images])
        blended.alpha = 0.0
        student = Student(blended)
        self._learn(setup, stage, student, wide, images, stages)
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
            batches = training_inputs(setup.settings.data, len(found) + 1, stages.keys)
            if len(batches) == len(found):
                raise PruneError(
                    f"few_images.images (={self.images}) is more than the "
                    f"{sum(map(len, found))} training images"
                )
            found = batches
        return torch.cat(found)[: self.images]

    def _learn(
        self,
        setup: Setup,
        stage: str,
        student: Student,
        dense: nn.Module,
        images: Tensor,
        stages: Stages,
    ) -> None:
        settings = setup.settings
        how = Learning(self.steps, self.batch_size, self.learning_rate, self.mixup)
        dtype = torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32
        how = replace(how, match=self.match, seed=settings.seed, dtype=dtype)
        if settings.fast:
            how = replace(how, steps=min(2, how.steps))
        began = time.perf_counter()
        macs = macs_a_step(student, dense, images, how) if how.steps else 0
        learn(student, dense, images, how)
        stages.records[stage] = {
            "seconds": round(time.perf_counter() - began, 1),
            "epochs": 0,
            "train_macs": macs * how.steps,
            "loader_share": 0.0,
        }

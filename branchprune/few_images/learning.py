"""Learning: steps in which the narrow model matches the dense one on views of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import OneCycleLR

from branchprune.errors import Failed, PruneError, not_negative, positive, whole
from branchprune.few_images.head import reading
from branchprune.few_images.images import Transform, mixed, views
from branchprune.few_images.matching import Distance, Match, mismatch
from branchprune.few_images.student import Student
from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import seeded

MOMENTUM = 0.1
"""Of BatchNorm, at least: networks that were trained for long have less, and some none."""
Progress = Callable[[int, int, float], None]
"""Told of each step: its number from 1, of how many, and its loss."""


@dataclass(frozen=True)
class Learning:
    """How the narrow model learns.

    Attributes:
        steps: Number of steps.
        batch_size: Images a step; of fewer each is drawn several times, in other views.
        learning_rate: The largest, of one cycle of AdamW.
        mixup: α of Beta(α, α), from which the share of each image in a mixture is drawn; 0: none.
        transform: Makes views of a batch; None: random crops, mirrored.
        match: What is matched; see `mismatch`.
        distance: How far outputs are apart, instead of what is matched else.
        seed: Of all that is drawn.
        dtype: In which a pass is computed, float32 or bfloat16; weights stay as they are.

    Raises:
        PruneError: A number is out of its range.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-2
    mixup: float = 1.0
    transform: Transform | None = None
    match: Match = "head"
    distance: Distance | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        whole("batch_size", self.batch_size, 2)
        positive("learning_rate", self.learning_rate)
        not_negative("mixup", self.mixup)
        whole("seed", self.seed)
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise PruneError(f"dtype (={self.dtype}) must be torch.float32 or torch.bfloat16")

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        steps = "step" if self.steps == 1 else "steps"
        rate = f"learning rate {self.learning_rate}"
        return f"{self.steps} {steps} ({rate}, {dtype}, seed {self.seed})"


def batches(images: Tensor, how: Learning) -> Iterator[Tensor]:
    """Yield batches of views without end; every image comes once before one comes again."""
    generator = torch.Generator().manual_seed(how.seed)
    transform = how.transform or (lambda batch: views(batch, generator))
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < how.batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: how.batch_size], order[how.batch_size :]
        yield mixed(transform(images[chosen.to(images.device)]), how.mixup, generator)


def learn(
    student: Student,
    dense: nn.Module,
    images: Tensor,
    how: Learning,
    progress: Progress | None = None,
) -> None:
    """Let a student match the dense model.

    Args:
        student: The narrow model; it is changed.
        dense: The dense model, in evaluation mode.
        images: What to learn from (N, …), on the device of both.
        how: Steps, learning rate and the like.
        progress: Told of each step.

    Raises:
        Failed: The loss is not finite.
    """
    if how.steps:
        with seeded(how.seed, [images]):  # a transform may draw from torch's own generator
            _learn(student, dense, images, how, progress)


def _learn(
    student: Student, dense: nn.Module, images: Tensor, how: Learning, progress: Progress | None
) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=how.learning_rate, weight_decay=0.0)
    schedule = OneCycleLR(optimizer, how.learning_rate, total_steps=how.steps)
    drawn = batches(images, how)
    layers = [*student.head]
    with (
        _learning_mode(student.model),
        reading(student.model, layers) as found,
        reading(dense, layers) as wanted,
    ):
        for step in range(1, how.steps + 1):
            for tensors in (*found.values(), *wanted.values()):
                tensors.clear()
            outputs = _outputs(student.model, dense, next(drawn), how.dtype)
            if how.distance is not None:
                loss = how.distance(*outputs)
            else:
                loss = mismatch(how.match, (found, wanted), outputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Failed(f"the loss is {value} in step {step} of {how.steps}")
            if progress:
                progress(step, how.steps, value)


def _outputs(
    student: nn.Module, dense: nn.Module, x: Tensor, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Return what both models make of a batch."""
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            wanted = dense(x)
        return student(x), wanted


@contextmanager
def _learning_mode(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm take the statistics of each batch, and dropout leave nothing out.

    What BatchNorm remembers must be of the last steps. cuDNN has gradients of recurrent layers in
    training mode alone.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    before = [norm.momentum for norm in norms], [layer.dropout for layer in recurrent]
    try:
        with training_mode(model, False):
            for norm in norms:
                norm.train()
                norm.momentum = max(norm.momentum or 0.0, MOMENTUM)
            for layer in recurrent:
                layer.train()
                layer.dropout = 0.0
            yield
    finally:
        for norm, momentum in zip(norms, before[0], strict=True):
            norm.momentum = momentum
        for layer, dropout in zip(recurrent, before[1], strict=True):
            layer.dropout = dropout

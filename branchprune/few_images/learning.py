"""Learning: steps in which the narrow model matches the dense one on views of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from branchprune.errors import Failed, PruneError, not_negative, positive, whole
from branchprune.few_images.augmentation import MIXING, Mixing, View, crops
from branchprune.few_images.head import Read
from branchprune.few_images.images import Transform
from branchprune.few_images.looks import Look, in_dtype, looks
from branchprune.few_images.matching import HINT_WEIGHT, Distance, Error, Match, mismatch
from branchprune.few_images.optimizers import Name, optimizer
from branchprune.few_images.student import Student
from branchprune.few_images.targets import AT
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
        learning_rate: The largest.
        mixing_alpha: α of Beta(α, α), from which the share of each image in a mixture is drawn; 0:
            none is mixed.
        mixing: How images are mixed: means of two, rectangles of another, or either of it.
        transform: Makes views of a batch; None: those of `views`.
        views: Make views of a batch, one after the other.
        match: What is matched: "head": what the layers read that make the outputs; "maps": what is
            pooled before them; "junctions": what every convolution and fully connected layer reads
            of channels that shrink; "outputs"; see `mismatch`.
        hints_fade: Whether the weight of what is read inside falls to 0, so that at last the head
            counts alone.
        error: How far features are apart; see `mismatch`.
        distance: How far outputs are apart, instead of what is matched else.
        steps_a_look: Steps for which a look of the dense model at a batch serves.
        optimizer: See `optimizer`.
        weight_decay: That of the optimizer.
        seed: Of all that is drawn.
        dtype: In which a pass is computed, float32 or bfloat16; weights stay as they are.

    Raises:
        PruneError: A number is out of its range.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-2
    mixing_alpha: float = 1.0
    mixing: Mixing = "cutmix"
    transform: Transform | None = None
    views: tuple[View, ...] = (crops,)
    match: Match = "junctions"
    hints_fade: bool = True
    error: Error = "relative"
    distance: Distance | None = None
    steps_a_look: int = 1
    optimizer: Name = "adamw"
    weight_decay: float = 0.0
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        whole("batch_size", self.batch_size, 2)
        whole("steps_a_look", self.steps_a_look, 1)
        positive("learning_rate", self.learning_rate)
        not_negative("mixing_alpha", self.mixing_alpha)
        not_negative("weight_decay", self.weight_decay)
        whole("seed", self.seed)
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise PruneError(f"dtype (={self.dtype}) must be torch.float32 or torch.bfloat16")

    def __str__(self) -> str:
        if not self.steps:
            return "fitted, without steps of learning"
        dtype = str(self.dtype).removeprefix("torch.")
        steps = "step" if self.steps == 1 else "steps"
        rate = f"learning rate {self.learning_rate}"
        size = f"of {self.batch_size} images"
        return f"{self.steps} {steps} {size} ({rate}, {dtype}, seed {self.seed})"


def batches(images: Tensor, how: Learning) -> Iterator[Tensor]:
    """Yield batches of views without end; every image comes once before one comes again."""
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < how.batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: how.batch_size], order[how.batch_size :]
        seen = _views(images[chosen.to(images.device)], how, generator)
        yield MIXING[how.mixing](seen, how.mixing_alpha, generator)


def _views(images: Tensor, how: Learning, generator: torch.Generator) -> Tensor:
    if how.transform is not None:
        return how.transform(images)
    for view in how.views:
        images = view(images, generator)
    return images


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
    targets = AT[how.match](student)
    weights = [*student.parameters(), *targets.own]
    moving = optimizer(how.optimizer, weights, how.learning_rate, how.weight_decay, how.steps)
    with _learning_mode(student.model), targets.reading(student.model, dense) as (found, wanted):
        for step, look in enumerate(islice(_looks(dense, wanted, images, how), how.steps), 1):
            for tensors in found.values():
                tensors.clear()
            with in_dtype(look.images, how.dtype):
                outputs = student.model(look.images), look.outputs
                read = targets.expanded(found), look.read
            if how.distance is not None:
                loss = how.distance(*outputs)
            else:
                hint_weight = HINT_WEIGHT * (1 - how.hints_fade * step / how.steps)
                loss = mismatch(
                    how.match, read, outputs, how.error, student.covers, targets.hints, hint_weight
                )
            value = descend(loss, *moving)
            if not math.isfinite(value):
                raise Failed(f"the loss is {value} in step {step} of {how.steps}")
            if progress:
                progress(step, how.steps, value)


def _looks(dense: nn.Module, read: Read, images: Tensor, how: Learning) -> Iterator[Look]:
    generator = torch.Generator().manual_seed(how.seed)
    return looks(dense, read, batches(images, how), how.steps_a_look, how.dtype, generator)


def descend(loss: Tensor, optimizer: Optimizer, schedule: LRScheduler) -> float:
    """Make a step; return the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()
    return float(loss.detach())


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

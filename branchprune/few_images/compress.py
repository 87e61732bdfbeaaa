"""A trained model made small with some images and no labels: the whole way in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.errors import PruneError, not_negative, positive, whole
from branchprune.few_images.agreement import Agreement, agreement
from branchprune.few_images.fitness import warn_if_strange
from branchprune.few_images.images import Images, Transform, divided, gather
from branchprune.few_images.learning import Learning, Progress, learn
from branchprune.few_images.matching import Distance
from branchprune.few_images.pace import DTYPES, seconds_a_step
from branchprune.few_images.student import Student
from branchprune.graph.inputs import copied, on_device
from branchprune.planning.plan import Plan, plan

HELD_OUT = 0.1
STEPS = 2000
RESERVE = 1.3
"""The time until learning begins, and a part of it again for the collapse and the judgement."""
CALIBRATION = 256
"""Images from which channels are chosen and linear ends are fitted."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` has made; printed in a few lines.

    Attributes:
        model: The small model, of the class of the dense one.
        plan: Its widths, and what both cost.
        agreement: How well it stands for the dense model on the images that were held out.
        steps: How many steps it has learnt; with the same `steps`, `dtype` and `seed` it becomes
            the same model again.
        dtype: In which the steps were computed; weights stay as they were.
        images: How many images it has learnt from.
        error: Relative error of the collapse in float64.
        seconds: How long all of it took.
    """

    model: nn.Module
    plan: Plan = field(repr=False)
    agreement: Agreement
    steps: int
    dtype: torch.dtype
    images: int
    error: float
    seconds: float

    def __str__(self) -> str:
        before, after = self.plan.before, self.plan.after
        pairs = [(what, getattr(before, what), getattr(after, what)) for what in ("params", "macs")]
        costs = [f"{what}: {old:,} → {new:,} ({new / old - 1:+.1%})" for what, old, new in pairs]
        time = f"{self.steps} steps, {self.seconds:.0f} s"
        judged = f"of {self.agreement.images} held-out images {self.agreement}"
        return "\n".join([*costs, judged, time])


def compress(
    model: nn.Module,
    images: Images,
    keep: float | Mapping[str, float] = 0.5,
    *,
    exclude: Sequence[str] = (),
    multiple_of: int = 1,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    mixup: float = 1.0,
    transform: Transform | None = None,
    distance: Distance | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Make a trained model small with a few images: no labels, no training pipeline.

    ```python
    small = bp.compress(model, images, keep=0.34, minutes=5).model
    ```

    Channels are chosen and linear ends fitted by least squares on the images; then the narrow model
    learns, on mixtures of views of them, what the dense model's head reads (and, where outputs are
    no vectors of classes, the outputs). Source: MiR (Wang et al., 2022).

    Args:
        model: The trained model, of one tensor of images; it is not changed.
        images: Tensor (N, C, H, W), as the model wants them (normalised), at least 2; or batches of
            such, as a DataLoader gives: of tuples the first entry is taken.
        keep: Fraction of the channels to keep; see `plan`.
        exclude: See `plan`.
        multiple_of: See `plan`.
        minutes: How long all of it may take: says how many steps there are.
        steps: How many steps to learn, 2000 if neither is given.
        batch_size: Images a step.
        mixup: α of the Beta distribution of mixtures; 0: images are not mixed.
        transform: Makes views of a batch (N, C, H, W); None: random crops, half of them mirrored.
        distance: `distance(outputs, wanted) -> Tensor`, what to minimise instead.
        dtype: In which the steps are computed, float32 or bfloat16; None: that which is faster
            here, by some steps that are then thrown away.
        seed: Of all that is drawn.
        progress: Called after each step with its number, of how many, and the loss.

    Returns:
        The small model, with its costs and how well it agrees with the dense one on a tenth of the
        images, which was held out.

    Raises:
        PruneError: An argument is wrong, the images do not fit the model, nothing can be pruned, or
            `minutes` are too few.
    """
    began = time.perf_counter()
    _check(minutes, steps, batch_size, mixup, dtype)
    known, held_out = _prepared(model, images, seed)
    dense = copied(model).eval().requires_grad_(False)
    planned = plan(dense, known[:2], keep, exclude=exclude, multiple_of=multiple_of)
    warn_if_strange(dense, torch.cat([known, held_out])[:CALIBRATION])
    student = Student(fitted_start(model, planned, known))
    how = Learning(steps or STEPS, batch_size, mixup=mixup, transform=transform)
    how = replace(how, distance=distance, seed=seed)
    how = _paced(student, dense, known, how, dtype, minutes, began)
    learn(student, dense, known, how, progress)
    small = student.folded()
    judged = agreement(dense, small, held_out, batch_size)
    seconds = time.perf_counter() - began
    made = (how.steps, how.dtype, len(known), student.error, seconds)
    return Compressed(small, planned, judged, *made)


def fitted_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the branch alone: channels chosen by reconstruction, linear ends by least squares.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose and fit; the first of them count.
    """
    batch = images[:CALIBRATION]
    blended = attach(model, planned, "reconstruction", batches=[batch])
    blended = fit_expand(blended, [batch])
    blended.alpha = 0.0
    return blended


def _check(
    minutes: object, steps: object, batch_size: object, mixup: object, dtype: object
) -> None:
    if minutes is not None and steps is not None:
        raise PruneError(f"minutes (={minutes}) and steps (={steps}): give one of them")
    if minutes is not None:
        positive("minutes", minutes)
    if steps is not None:
        whole("steps", steps, 1)
    whole("batch_size", batch_size, 2)
    not_negative("mixup", mixup)
    if dtype not in (None, *DTYPES):
        raise PruneError(f"dtype (={dtype}) must be torch.float32, torch.bfloat16 or None")


def _prepared(model: nn.Module, images: Images, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images to learn from and those held out, on the device of the model."""
    found = on_device(gather(images), model)
    assert isinstance(found, Tensor)
    return divided(found, HELD_OUT, torch.Generator().manual_seed(seed))


def _paced(
    student: Student,
    dense: nn.Module,
    images: Tensor,
    how: Learning,
    dtype: torch.dtype | None,
    minutes: float | None,
    began: float,
) -> Learning:
    """Return how to learn in the precision that is faster here, and within the time."""
    if minutes is None and dtype is not None:
        return replace(how, dtype=dtype)
    dtypes = DTYPES if dtype is None else (dtype,)
    paces = {
        each: seconds_a_step(student, dense, images, replace(how, dtype=each)) for each in dtypes
    }
    fastest, seconds = min(paces.items(), key=lambda item: item[1])
    how = replace(how, dtype=fastest)
    if minutes is None:
        return how
    spent = time.perf_counter() - began
    steps = int((60 * minutes - RESERVE * spent) / seconds)
    if steps < 1:
        least = (RESERVE * spent + seconds) / 60
        raise PruneError(
            f"minutes (={minutes}) are too few: choosing channels and fitting alone took "
            f"{spent:.0f} s; give more than {least:.1f}"
        )
    return replace(how, steps=steps)

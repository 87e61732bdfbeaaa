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
from branchprune.few_images.trial import check_weights, try_out
from branchprune.graph.inputs import copied
from branchprune.graph.plain_model import check_model
from branchprune.graph.random_generators import seeded
from branchprune.planning.plan import Plan, plan

HELD_OUT = 0.1
STEPS = 2000
RESERVE = 1.3
"""The time until learning begins, and a part of it again for the collapse and the judgement."""
CALIBRATION = 256
"""Images from which channels are chosen and linear ends are fitted."""
LEAST, LARGEST = 16, 2**21
"""Of these at a time: how many at least, and else how many numbers, for the memory they take."""
CHECKED = 64
"""Images on which it is tried whether they are of the model's kind."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` has made; printed in a few lines.

    Attributes:
        model: The small model, of the class of the dense one.
        plan: Its widths, and what both cost.
        agreement: How well it stands for the dense model on the images that were held out.
        steps: How many steps it has learnt; with the same `steps`, `dtype` and `seed` it becomes
            the same model again, on a CPU.
        dtype: In which the steps were computed; weights stay as they were.
        seed: Of all that was drawn.
        images: How many images it has learnt from.
        error: Relative error of the collapse in float64.
        seconds: How long all of it took.
    """

    model: nn.Module
    plan: Plan = field(repr=False)
    agreement: Agreement
    steps: int
    dtype: torch.dtype
    seed: int
    images: int
    error: float
    seconds: float

    def __str__(self) -> str:
        before, after = self.plan.before, self.plan.after
        pairs = [(what, getattr(before, what), getattr(after, what)) for what in ("params", "macs")]
        costs = [f"{what}: {old:,} → {new:,} ({new / old - 1:+.1%})" for what, old, new in pairs]
        judged = f"of {self.agreement.images} held-out images {self.agreement}"
        made = f"{self.how}, {self.images} images, {self.seconds:.0f} s"
        return "\n".join([*costs, judged, made])

    @property
    def how(self) -> str:
        """What makes the same model again."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.steps} {'step' if self.steps == 1 else 'steps'} ({dtype}, seed {self.seed})"


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
            such, as a DataLoader gives: of tuples the first entry is taken. They are held in
            memory: of batches without end 100,000.
        keep: Fraction of the channels to keep; see `plan`.
        exclude: See `plan`.
        multiple_of: See `plan`.
        minutes: How long all of it may take: says how many steps there are.
        steps: How many steps to learn, 2000 if neither is given.
        batch_size: Images a step.
        mixup: α of the Beta distribution of mixtures; 0: images are not mixed.
        transform: Makes views of a batch (N, C, H, W), normalised as it is; None: random crops,
            half of them mirrored.
        distance: `distance(outputs, wanted) -> Tensor`, a number to minimise instead.
        dtype: In which the steps are computed, float32 or bfloat16; None: that which is faster
            here, by some steps that are then thrown away.
        seed: Of all that is drawn.
        progress: Called after each step with its number, of how many, and the loss.

    Returns:
        The small model, in evaluation mode, with its costs and how well it agrees with the dense
        one on a tenth of the images, which was held out.

    Raises:
        PruneError: An argument is wrong, the images do not fit the model, nothing can be pruned, or
            `minutes` are too few.
    """
    began = time.perf_counter()
    _check(minutes, steps, batch_size, mixup, dtype)
    whole("seed", seed)
    check_model(model)
    check_weights(model)
    known, held_out = _prepared(model, images, seed)
    how = Learning(steps or STEPS, batch_size, mixup=mixup, transform=transform)
    how = replace(how, distance=distance, seed=seed)
    with seeded(seed, [known]):  # the model or the transform may draw, too
        dense = copied(model).eval()
        planned = plan(dense, known[:2], keep, exclude=exclude, multiple_of=multiple_of)
        try_out(dense.requires_grad_(False), known, transform, distance)
        warn_if_strange(dense, torch.cat([known, held_out])[:CHECKED])
        student = Student(fitted_start(model, planned, known))
        how = _paced(student, dense, known, how, dtype, minutes, began)
        learn(student, dense, known, how, progress)
        small = student.folded().eval()
        judged = agreement(dense, small, held_out, batch_size)
    seconds = time.perf_counter() - began
    made = (how.steps, how.dtype, seed, len(known), student.error, seconds)
    return Compressed(small, planned, judged, *made)


def fitted_start(model: nn.Module, planned: Plan, images: Tensor) -> Blended:
    """Return the branch alone: channels chosen by reconstruction, linear ends by least squares.

    Args:
        model: The dense model.
        planned: Its plan.
        images: From which to choose and fit; the first of them count.
    """
    count = max(LEAST, LARGEST // images[0].numel())
    batches = images[:CALIBRATION].split(count)
    blended = attach(model, planned, "reconstruction", batches=batches)
    blended = fit_expand(blended, batches)
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
    """Return the images to learn from and those held out, as the weights of the model are."""
    found = gather(images)
    weight = next((each for each in model.parameters() if each.is_floating_point()), found)
    return divided(found.to(weight), HELD_OUT, torch.Generator().manual_seed(seed))


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
            f"{spent:.1f} s; give more than {least:.2g}"
        )
    return replace(how, steps=steps)

"""A trained model made small with some images and no labels: the whole way in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from branchprune.artifacts.agreement import Agreement, agreement
from branchprune.errors import PruneError, positive
from branchprune.few_images.fitness import warn_if_strange
from branchprune.few_images.images import Transform, divided
from branchprune.few_images.learning import Learning, Progress, learn
from branchprune.few_images.matching import Distance
from branchprune.few_images.pace import AFTER, DTYPES, SIZES
from branchprune.few_images.settling import Given, settled
from branchprune.few_images.start import fitted_start, looked_at
from branchprune.few_images.student import Student
from branchprune.few_images.trial import check_weights, try_out
from branchprune.graph.inputs import copied
from branchprune.graph.memory_format import put_channels_last
from branchprune.graph.plain_model import check_model
from branchprune.graph.random_generators import seeded
from branchprune.graph.unlabelled import Images, gather
from branchprune.planning.plan import Plan
from branchprune.runtimes.runtime import Runtime
from branchprune.targets.goal import check_asked, check_runtime, needing_runtime
from branchprune.targets.plan import plan
from branchprune.targets.target_plan import TargetPlan

HELD_OUT = 0.1
STEPS = 2000
CHECKED = 64
"""Images on which it is tried whether they are of the model's kind."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress` has made; printed in a few lines.

    Attributes:
        model: The small model, of the class of the dense one.
        plan: Its widths, and what both cost.
        agreement: How well it stands for the dense model on the images that were held out.
        how: How it has learnt: the same `steps`, `batch_size`, `learning_rate`, `dtype` and `seed`
            make it again, on a CPU.
        images: How many images it has learnt from.
        error: Relative error of the collapse in float64.
        seconds: How long all of it took.
        doubts: What speaks against it: what was warned of.
    """

    model: nn.Module
    plan: Plan = field(repr=False)
    agreement: Agreement
    how: Learning = field(repr=False)
    images: int
    error: float
    seconds: float
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        before, after = self.plan.before, self.plan.after
        pairs = [(what, getattr(before, what), getattr(after, what)) for what in ("params", "macs")]
        costs = [f"{what}: {old:,} → {new:,} ({new / old - 1:+.1%})" for what, old, new in pairs]
        if isinstance(self.plan, TargetPlan):
            costs += map(str, self.plan.reached)
        judged = f"on {counted(self.agreement.images, 'held-out image')} {self.agreement}"
        made = f"{self.how}, {counted(self.images)}, {self.seconds:.0f} s"
        return "\n".join([*costs, judged, made, *(f"but {doubt}" for doubt in self.doubts)])


def counted(number: int, what: str = "image") -> str:
    """Return how many there are of something, as "1 image" or "2 images"."""
    return f"{number} {what}{'s' * (number != 1)}"


def compress(
    model: nn.Module,
    images: Images,
    keep: float | Mapping[str, float] | None = None,
    *,
    target: Mapping[str, float] | None = None,
    exclude: Sequence[str] = (),
    multiple_of: int | Literal["auto"] = 1,
    runtime: Runtime | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    mixing_alpha: float = 1.0,
    transform: Transform | None = None,
    distance: Distance | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    phase: Callable[[str], object] = lambda _: None,
) -> Compressed:
    """Make a trained model small with a few images: no labels, no training pipeline.

    ```python
    small = bp.compress(model, images, keep=0.34, minutes=5).model
    ```

    Channels are chosen and linear ends fitted by least squares on the images; then the narrow model
    learns, on views of them with rectangles of others, what the layers of the dense model read:
    at first all of them, through ends that are not part of it, at last those of the head alone
    (and, where outputs are no vectors of classes, the outputs). Sources: MiR (Wang et al., 2022),
    which matches what is pooled; FitNets (Romero et al., 2015), whose hints are of layers inside;
    CutMix (Yun et al., 2019).

    Args:
        model: The trained model, of one tensor of images; it is not changed.
        images: Tensor (N, C, H, W), as the model wants them (normalised), at least 2; or batches of
            such, as a DataLoader gives: of tuples the first entry is taken. They are held in
            memory: of batches without end 100,000.
        keep: Fraction of the channels to keep, 0.5 if neither this nor `target` is given; see
            `plan`.
        target: What to reach, `{"macs": 0.5}`, in place of `keep`; the widths are chosen on the
            images; see `plan`. "memory" is that for two images at once, latency that of one.
        exclude: See `plan`.
        multiple_of: See `plan`.
        runtime: Where latency is measured; see `plan`.
        minutes: How long all of it may take: says how many steps there are.
        steps: How many steps to learn, 2000 if neither is given; 0: choosing and fitting alone,
            which some tens of steps may be worse than.
        batch_size: Images a step; None: 64, or half or a quarter of it where fewer than 300 steps
            of more would fit into `minutes`.
        learning_rate: The largest of one cycle; None: of four that with which the loss falls most
            in a short run, or 0.003 where there are fewer than 100 steps.
        mixing_alpha: α of the Beta distribution of the share that an image has in a mixture; 0:
            images are not mixed.
        transform: Makes views of a batch (N, C, H, W), normalised as it is; None: random crops,
            half of them mirrored.
        distance: `distance(outputs, wanted) -> Tensor`, a number to minimise instead.
        dtype: In which the steps are computed, float32 or bfloat16; None: that which is faster
            here, by some steps that are then thrown away.
        seed: Of all that is drawn.
        progress: Called after each step with its number, of how many, and the loss.
        phase: Called with what begins, such as "choosing channels and fitting", once the arguments
            are checked and the images gathered.

    Returns:
        The small model, in evaluation mode, with its costs and how well it agrees with the dense
        one on a tenth of the images, which was held out.

    Raises:
        PruneError: An argument is wrong, the images do not fit the model, nothing can be pruned, or
            `minutes` are too few.
    """
    began = time.perf_counter()
    check_asked(keep, target, multiple_of)
    check_runtime(needing_runtime(target or {}, multiple_of), runtime is not None)
    how = Learning(
        STEPS if steps is None else steps,
        SIZES[0 if minutes is None else -1] if batch_size is None else batch_size,
        mixing_alpha=mixing_alpha,
        transform=transform,
        distance=distance,
        seed=seed,
    )
    ways = _ways(how, steps, minutes, learning_rate, dtype)
    check_model(model)
    check_weights(model)
    with torch.inference_mode(False), torch.enable_grad():
        known, held_out = _prepared(model, images, seed)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        seeded(seed, [known]),  # the model or the transform may draw, too
    ):
        dense = copied(model).eval()
        if target:
            phase("choosing widths")
        planned = plan(
            dense,
            known[: 2 if runtime is None else 1],
            keep,
            target=target,
            batches=[looked_at(known)] if target else None,
            exclude=exclude,
            multiple_of=multiple_of,
            runtime=runtime,
        )
        if planned.after == planned.before:
            raise PruneError(
                f"keep (={keep}): no channel would go; print(bp.plan(…)), or `branchprune plan`, "
                "says why"
            )
        try_out(dense.requires_grad_(False), known, transform, distance)
        doubts = warn_if_strange(dense, torch.cat([known, held_out])[:CHECKED])
        _refuse_if_late(minutes, time.perf_counter() - began)
        phase("choosing channels and fitting")
        student = Student(fitted_start(model, planned, known))
        put_channels_last([dense, student.model], known)
        given = Given(minutes, began, batch_size is not None, learning_rate is not None)
        how = settled(student, dense, known, ways, given, phase)
        if how.steps:
            phase("learning")
        learn(student, dense, known, how, progress)
        small = student.folded().eval()
        judged = agreement(dense, small, held_out, how.batch_size)
    made_of = (len(known), student.error, time.perf_counter() - began)
    return Compressed(small, planned, judged, how, *made_of, doubts)


def _refuse_if_late(minutes: float | None, spent: float) -> None:
    if minutes is not None and spent > 60 * minutes:
        raise PruneError(
            f"minutes (={minutes}) are too few: choosing channels alone took {spent:.1f} s; give "
            f"more than {(1 + AFTER) * spent / 60:.2g}"
        )


def _ways(
    how: Learning,
    steps: int | None,
    minutes: float | None,
    learning_rate: float | None,
    dtype: torch.dtype | None,
) -> list[Learning]:
    """Return in which ways to learn, of which the fastest will be taken.

    Raises:
        PruneError: An argument is wrong.
    """
    if minutes is not None:
        positive("minutes", minutes)
    if minutes is not None and steps is not None:
        raise PruneError(f"minutes (={minutes}) and steps (={steps}): give one of them")
    if learning_rate is not None:
        how = replace(how, learning_rate=learning_rate)
    return [replace(how, dtype=each) for each in (DTYPES if dtype is None else (dtype,))]


def _prepared(model: nn.Module, images: Images, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images to learn from and those held out, as the weights of the model are."""
    found = gather(images)
    weight = next((each for each in model.parameters() if each.is_floating_point()), found)
    return divided(found.to(weight), HELD_OUT, torch.Generator().manual_seed(seed))

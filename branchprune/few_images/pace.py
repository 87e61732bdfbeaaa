"""What a step of learning costs: seconds here, and multiply-adds; how many fit into a time."""

from __future__ import annotations

import copy
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.student import Student
from branchprune.graph.macs_counter import MacsCounter

DTYPES = (torch.float32, torch.bfloat16)
WARM_UP, TIMED = 2, 4
"""Steps of a rehearsal before the clock runs, and with it."""
SIZES = (64, 32, 16)
"""Images a step: 64 where the number of steps is given, else the most of which enough steps fit."""
ENOUGH = 300
"""Steps that are worth more than larger batches."""
AFTER = 0.3
"""What comes at the end takes, as a part of what comes before learning."""


def fastest(
    student: Student, dense: nn.Module, images: Tensor, ways: Sequence[Learning]
) -> tuple[Learning, float]:
    """Return the way to learn whose steps are the fastest here, and the seconds of one.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        ways: How the steps may be made.
    """
    paces = [seconds_a_step(student, dense, images, way) for way in ways]
    least = min(paces)
    return ways[paces.index(least)], least


def seconds_a_step(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> float:
    """Return how long a step takes, by some steps of a copy that is then thrown away."""
    at: list[float] = []

    def clock(*_: object) -> None:
        at.append(time.perf_counter())

    learn(copy.deepcopy(student), dense, images, replace(how, steps=WARM_UP + TIMED), clock)
    return (at[-1] - at[WARM_UP - 1]) / TIMED


def steps_within(
    minutes: float, spent: float, pace: float, before: Callable[[int], int] = lambda _: 0
) -> int:
    """Return how many steps fit into a time.

    Args:
        minutes: The time.
        spent: Seconds of it that have passed.
        pace: Seconds of a step.
        before: Returns how many steps are made and thrown away before so many.

    Raises:
        PruneError: There is not one.
    """
    steps = _steps(minutes, spent, pace, before)
    if steps < 1:
        least = ((1 + AFTER) * spent + (before(1) + 1) * pace) / 60
        raise PruneError(
            f"minutes (={minutes}) are too few: choosing channels and fitting alone took "
            f"{spent:.1f} s; give more than {least:.2g}"
        )
    return steps


def fewer(steps: int, left: float, pace: float) -> int:
    """Return as many of some steps as fit into a time, at least one.

    Args:
        steps: How many were to be made.
        left: Seconds.
        pace: Seconds of a step.
    """
    return max(1, min(steps, int(left / pace))) if pace > 0 else steps


def _steps(minutes: float, spent: float, pace: float, before: Callable[[int], int]) -> int:
    left = 60 * minutes - (1 + AFTER) * spent
    made = range(int(max(left, 0) / pace) + 1)
    return bisect_right(made, made[-1], key=lambda steps: steps + before(steps)) - 1


def largest_batch(
    student: Student,
    dense: nn.Module,
    images: Tensor,
    how: Learning,
    pace: float,
    minutes: float,
    spent: float,
    before: Callable[[int], int] = lambda _: 0,
) -> tuple[Learning, float]:
    """Return how to learn in a time with the largest batches of which enough steps fit into it.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps would be made, with the smallest batches.
        pace: Seconds of such a step.
        minutes: The time.
        spent: Seconds of it that have passed.
        before: See `steps_within`.

    Returns:
        The same with other batches, and the seconds of a step of theirs.
    """
    if _steps(minutes, spent, pace, before) < ENOUGH:
        return how, pace
    least, most = SIZES[-1], SIZES[0]
    slowest = seconds_a_step(student, dense, images, replace(how, batch_size=most))
    paces = {size: pace + (slowest - pace) * (size - least) / (most - least) for size in SIZES}
    fits = (size for size in SIZES if _steps(minutes, spent, paces[size], before) >= ENOUGH)
    size = next(fits, least)
    return replace(how, batch_size=size), paces[size]


def macs_of_learning(student: Student, dense: nn.Module, images: Tensor, how: Learning) -> int:
    """Return the multiply-adds of a step, forward and backward, the dense model's included.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        how: How the steps will be made.
    """
    learns = partial(learn, copy.deepcopy(student), dense, images)
    return macs_a_step(learns, how, min(how.steps, how.steps_a_look))


def macs_a_step(run: Callable[[Learning], object], how: Learning, steps: int = 1) -> int:
    """Return the multiply-adds of a step of a run.

    Args:
        run: Makes steps that are thrown away.
        how: How the steps will be made.
        steps: Of how many to take the mean.
    """
    with MacsCounter() as counter:
        run(replace(how, steps=steps))
    return counter.macs // steps

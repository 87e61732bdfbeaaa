"""How the steps will be made: in which dtype, of how many images, how many, at which rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from branchprune.few_images.learning import Learning
from branchprune.few_images.pace import AFTER, fastest, fewer, largest_batch, steps_within
from branchprune.few_images.rate import best_rate, tried
from branchprune.few_images.student import Student


@dataclass(frozen=True)
class Given:
    """What is said of the steps.

    Attributes:
        minutes: How long all may take; None: the number of steps is given.
        began: When it began, as `time.perf_counter` counts.
        has_size: Whether the images a step are given.
        has_rate: Whether the learning rate is.
    """

    minutes: float | None
    began: float
    has_size: bool
    has_rate: bool

    @property
    def spent(self) -> float:
        """Seconds that have passed."""
        return time.perf_counter() - self.began


def settled(
    student: Student,
    dense: nn.Module,
    images: Tensor,
    ways: Sequence[Learning],
    given: Given,
    phase: Callable[[str], object],
) -> Learning:
    """Return how to learn, by trials that are thrown away.

    Args:
        student: The narrow model; it is not changed.
        dense: The dense model.
        images: What to learn from.
        ways: How the steps may be made: they differ in dtype.
        given: What is said of them.
        phase: Told when learning rates are tried.

    Raises:
        PruneError: Not one step fits into the minutes.
    """
    models, minutes = (student, dense, images), given.minutes
    how, pace, spent = ways[0], 0.0, 0.0
    if minutes is not None or len(ways) > 1:
        how, pace = fastest(*models, ways)
    if minutes is not None:
        trials = () if given.has_rate else (tried,)
        if not given.has_size:
            how, pace = largest_batch(*models, how, pace, minutes, given.spent, *trials)
        spent = given.spent
        how = replace(how, steps=steps_within(minutes, spent, pace, *trials))
    if given.has_rate:
        return how
    made, before = tried(how.steps), given.spent
    if made:
        phase("trying learning rates")
    how = replace(how, learning_rate=best_rate(*models, how))
    if minutes is None or not made:
        return how
    left = 60 * minutes - given.spent - AFTER * spent  # the trials tell what steps take by now
    return replace(how, steps=fewer(how.steps, left, (given.spent - before) / made))

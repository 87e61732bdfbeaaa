"""How many steps fit into a time, of which short runs take a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import vgg

import branchprune as bp
from branchprune.few_images import pace as PACE
from branchprune.few_images import rate
from branchprune.few_images.learning import Learning
from branchprune.few_images.pace import fewer, largest_batch, steps_within
from branchprune.few_images.rate import best_rate, tried


@pytest.mark.parametrize(
    ("steps", "each"), [(0, 0), (1, 0), (99, 0), (100, 10), (200, 20), (400, 40), (4000, 40)]
)
def test_short_runs_are_a_tenth_of_what_follows_and_at_most_forty_steps(
    steps: int, each: int, monkeypatch: Any
) -> None:
    runs: list[int] = []

    def note(*given: Any) -> float:
        runs.append(given[3].steps)
        return 0.0

    monkeypatch.setattr(rate, "_loss", note)
    model, x = vgg(), torch.randn(2, 3, 8, 8)
    found = best_rate(model, model, x, Learning(steps))  # type: ignore[arg-type]
    assert runs == [each] * 4 if each else not runs and found == 0.003
    assert tried(steps) == 4 * each


@pytest.mark.parametrize("seconds", [3, 5, 60, 333, 1200])
def test_steps_and_short_runs_fill_the_time(seconds: float) -> None:
    """A step takes half a second; of 10 s before, 3 more are kept for the end."""
    steps = steps_within((seconds + 13) / 60, 10, 0.5, tried)
    assert (steps + tried(steps)) * 0.5 <= seconds < (steps + 1 + tried(steps + 1)) * 0.5
    assert steps_within((seconds + 13) / 60, 10, 0.5) == seconds * 2


@pytest.mark.parametrize(
    ("minutes", "slowest", "size", "pace"),
    [
        *[(20.1, 4.0, 64, 4.0), (20, 4.0, 32, 2.0), (10.1, 4.0, 32, 2.0), (10, 4.0, 16, 1.0)],
        *[(5.1, 1.0, 64, 1.0), (5.6, 1.3, 32, 1.1), (5, 1.0, 16, 1.0)],
    ],
)
def test_batches_are_as_large_as_enough_steps_allow(
    minutes: float, slowest: float, size: int, pace: float, monkeypatch: Any
) -> None:
    """A step of 16 images takes a second; of 64 four, or, on a GPU, hardly more."""
    asked: list[int] = []

    def seconds(*given: Any) -> float:
        asked.append(given[-1].batch_size)
        return slowest

    monkeypatch.setattr(PACE, "seconds_a_step", seconds)
    model, x = vgg(), torch.randn(2, 3, 8, 8)
    how = Learning(batch_size=16)
    found = largest_batch(model, model, x, how, 1.0, minutes, 3.0)  # type: ignore[arg-type]
    assert (found[0].batch_size, found[1]) == (size, pytest.approx(pace))
    assert asked == ([] if minutes == 5 else [64])


def test_too_few_minutes_say_how_many_it_takes() -> None:
    for minutes in (0.1, 0.22):
        with pytest.raises(bp.PruneError, match=r"too few.*give more than 0\.23"):
            steps_within(minutes, 10, 0.5, tried)


@pytest.mark.parametrize(
    ("left", "pace", "made"), [(10.0, 0.1, 100), (10.0, 0.2, 50), (-1.0, 0.2, 1), (1e3, 0.1, 100)]
)
def test_steps_that_prove_slower_become_fewer(left: float, pace: float, made: int) -> None:
    assert fewer(100, left, pace) == made

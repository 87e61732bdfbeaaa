"""How many steps fit into a time, of which short runs take a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import vgg

import branchprune as bp
from branchprune.few_images import rate
from branchprune.few_images.learning import Learning
from branchprune.few_images.pace import largest_batch, steps_within
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


@pytest.mark.parametrize(("minutes", "size"), [(20.1, 64), (20, 32), (10.1, 32), (10, 16), (0, 16)])
def test_batches_are_as_large_as_enough_steps_allow(minutes: float, size: int) -> None:
    """A step of 16 images takes a second; 300 of 64 images are 20 minutes."""
    assert largest_batch(minutes, 3.0, 1.0) == size


def test_too_few_minutes_say_how_many_it_takes() -> None:
    for minutes in (0.1, 0.22):
        with pytest.raises(bp.PruneError, match=r"too few.*give more than 0\.23"):
            steps_within(minutes, 10, 0.5, tried)

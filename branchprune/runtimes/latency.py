"""How long models take: one alone, or two in turns, so that they can be compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import training_mode
from branchprune.runtimes.runtime import Step

CPU = torch.device("cpu")
LEAST = 5
"""So often a latency is measured, however long it takes."""
BLOCK_S = 0.01
"""Seconds of passes that are timed together where one takes less."""


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, as median and interquartile range of several measurements.

    Attributes:
        median_s: The median, in seconds.
        iqr_s: Their interquartile range, in seconds; None: there is one measurement alone.
        batch_size: Examples a pass.
        device: "cpu" or "cuda".
        count: Number of measurements. Each is of one pass, or of several in a row where a pass
            takes less than 10 ms.
    """

    median_s: float
    iqr_s: float | None
    batch_size: int
    device: str
    count: int


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast one model is as another, measured in turns.

    Attributes:
        median: Median of the ratios of two measurements that follow on each other.
        low: Lower quartile.
        high: Upper quartile.
    """

    median: float
    low: float
    high: float


def measure_latency(model: nn.Module, x: Tensor, seconds: float = 1.0) -> Latency:
    """Time forward passes in evaluation mode after a warm-up.

    Args:
        model: The network.
        x: A batch on the model's device.
        seconds: How long to measure, five passes at least; 0: a single pass.
    """
    with _passes_of([model], x) as (step,):
        return step_latency(step, len(x), seconds, x.device)


def step_latencies(
    steps: Sequence[Step], batch_size: int, seconds: float = 1.0, device: torch.device = CPU
) -> list[Latency]:
    """Time what runs models in turns, after a warm-up; see `step_latency`."""
    turns = _times(steps, device, seconds)
    return [_latency(times, batch_size, device) for times in zip(*turns, strict=True)]


def step_latency(
    step: Step, batch_size: int, seconds: float = 1.0, device: torch.device = CPU
) -> Latency:
    """Time what runs a model, after a warm-up.

    Args:
        step: What to time.
        batch_size: Examples in a run.
        seconds: How long to measure, five runs at least; 0: a single run.
        device: Where it computes.
    """
    (found,) = step_latencies([step], batch_size, seconds, device)
    return found


def compare_latency(
    dense: nn.Module, small: nn.Module, x: Tensor, seconds: float = 2.0
) -> tuple[Latency, Latency, SpeedUp | None]:
    """Time forward passes of two models in turns, so that the machine's drift meets both alike.

    Args:
        dense: A network.
        small: Another.
        x: A batch on the device of both.
        seconds: How long to measure, five passes of each at least; 0: a single pass of each.

    Returns:
        The latency of each, and how many times as fast `small` is; None after a single pass.
    """
    with _passes_of([dense, small], x) as (first, second):
        return compare_steps(first, second, len(x), seconds, x.device)


def compare_steps(
    dense: Step, small: Step, batch_size: int, seconds: float = 2.0, device: torch.device = CPU
) -> tuple[Latency, Latency, SpeedUp | None]:
    """Time what runs two models in turns, whatever runs them; see `compare_latency`.

    Args:
        dense: Runs a model.
        small: Runs another.
        batch_size: Examples in a run of either.
        seconds: How long to measure, five runs of each at least; 0: a single run of each.
        device: Where they compute.

    Returns:
        The latency of each, and how many times as fast `small` is; None after a single run.
    """
    pairs = _times([dense, small], device, seconds)
    first, second = (_latency(times, batch_size, device) for times in zip(*pairs, strict=True))
    found = [before / after for before, after in pairs]
    if len(found) == 1:
        return first, second, None
    low, median, high = quartiles(found)
    return first, second, SpeedUp(median, low, high)


def in_turns(
    steps: Sequence[Step], device: torch.device, least: int, seconds: float = 0.0
) -> list[list[float]]:
    """Time functions in turns, forwards and backwards (A B, B A, …).

    Args:
        steps: What to time; each has been called before, if that warms it up.
        device: Where they compute.
        least: Number of turns.
        seconds: How long to go on with more of them.

    Returns:
        For each turn, the seconds of each function.
    """
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(turns) < least or time.perf_counter() < end:
        way = -1 if len(turns) % 2 else 1
        turns.append([_seconds(step, device) for step in steps[::way]][::way])
    return turns


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile of at least two numbers."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


@contextmanager
def _passes_of(models: Sequence[nn.Module], x: Tensor) -> Iterator[list[Step]]:
    """Return a forward pass of each of some models, in evaluation mode for a `with` block."""
    with torch.inference_mode(), ExitStack() as stack:
        for model in models:
            stack.enter_context(training_mode(model, False))
        yield [partial(model, x) for model in models]


def _times(steps: Sequence[Step], device: torch.device, seconds: float) -> list[list[float]]:
    """Return the seconds of a run of each step after a warm-up, turn by turn."""
    for step in steps:
        step()
    sizes = [_block_size(step, device) if seconds else 1 for step in steps]
    blocks = [partial(_passes, *each) for each in zip(steps, sizes, strict=True)]
    turns = in_turns(blocks, device, LEAST if seconds else 1, seconds)
    return [[s / size for s, size in zip(turn, sizes, strict=True)] for turn in turns]


def _block_size(step: Step, device: torch.device) -> int:
    """Return how many runs of what is warm to time together."""
    ((pass_s,),) = in_turns([step], device, 1)
    return max(1, math.ceil(BLOCK_S / max(pass_s, 1e-6)))


def _passes(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def _seconds(step: Step, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _latency(times: Sequence[float], batch_size: int, device: torch.device) -> Latency:
    if len(times) == 1:
        return Latency(times[0], None, batch_size, device.type, 1)
    low, median, high = quartiles(times)
    return Latency(median, high - low, batch_size, device.type, len(times))

"""A small model beside its dense one: how much faster it is, of what its multiply-adds promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from branchprune.graph.inputs import Example
from branchprune.planning.profiling import count_macs, count_params
from branchprune.runtimes.latency import Latency, SpeedUp, compare_steps
from branchprune.runtimes.runtime import Step


@dataclass(frozen=True)
class Size:
    """What a model has to compute, and to hold.

    Attributes:
        macs: Multiply-adds of one run, of the whole batch.
        params: Parameters.
    """

    macs: int
    params: int


@dataclass(frozen=True)
class BesideDense:
    """Two models, timed in turns in one runtime.

    Attributes:
        dense: Time of a run of the dense model.
        small: That of the small one.
        faster: How many times as fast the small one is.
        dense_size: What the dense model has to compute.
        small_size: What the small one has.
    """

    dense: Latency
    small: Latency
    faster: SpeedUp
    dense_size: Size
    small_size: Size

    @property
    def fewer(self) -> float:
        """How many times fewer multiply-adds there are: the speed-up if each took as long."""
        return self.dense_size.macs / max(1, self.small_size.macs)

    @property
    def of_limit(self) -> float:
        """The speed-up, as a share of that; above 1 where the dense model waits for its weights."""
        return self.faster.median / self.fewer

    def __str__(self) -> str:
        """Return in a line how much faster it is, and of how much."""
        found = self.faster
        return (
            f"{found.median:.2f} times as fast ({found.low:.2f}–{found.high:.2f}) as the dense "
            f"model, with {self.fewer:.2f} times fewer multiply-adds: {self.of_limit:.0%} of that"
        )


def size_of(model: nn.Module, example: Example) -> Size:
    """Return what a model has to compute for an example, and to hold."""
    return Size(count_macs(model, example), count_params(model))


def beside_dense(
    steps: tuple[Step, Step], sizes: tuple[Size, Size], batch_size: int, seconds: float = 2.0
) -> BesideDense:
    """Time a dense model and a small one in turns.

    Args:
        steps: What runs each, the dense one first, both on the processor.
        sizes: Their sizes.
        batch_size: Examples in a run of either.
        seconds: How long to measure, five runs of each at least.
    """
    dense, small, faster = compare_steps(*steps, batch_size, seconds)
    assert faster is not None, "there are five runs of each"
    return BesideDense(dense, small, faster, *sizes)


def in_threads(count: int) -> str:
    """Return a number of threads as a text: 1 thread, 2 threads."""
    return f"{count} thread{'s' * (count > 1)}"


def in_ms(seconds: float) -> str:
    """Return seconds as milliseconds: 1.23 ms."""
    ms = 1000 * seconds
    digits = max(0, 2 - math.floor(math.log10(max(ms, 1e-3))))
    return f"{ms:.{digits}f} ms"

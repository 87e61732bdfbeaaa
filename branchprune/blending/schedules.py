"""α over time: levels from 1 to 0, how long each is held, and in which order groups go.

A schedule is a loop over epochs:

```python
schedule = bp.Schedule(bp.steps(0.1), hold=2)
for blended.alpha in schedule:
    train_one_epoch(blended)
    schedule.report(validation_accuracy)   # only needed to hold until it stops improving
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from branchprune.errors import PruneError, whole

Mode = Literal["max", "min"]


def steps(size: float = 0.1) -> tuple[float, ...]:
    """Return levels that fall by `size`: 0.9, 0.8, …, 0 for 0.1, as in the paper."""
    if not isinstance(size, Real) or not 0 < size <= 1:
        raise PruneError(f"size (={size!r}) of an alpha step must be in (0, 1]")
    count = math.ceil(round(1 / size, 6))
    return tuple(max(0.0, round(1 - i * size, 6)) for i in range(1, count + 1))


def multiplicative(decay: float = 0.05, last: float = 0.05) -> tuple[float, ...]:
    """Return levels that fall by the fraction `decay` each, down to `last`, and then 0."""
    for name, value in (("decay", decay), ("last", last)):
        if not isinstance(value, Real) or not 0 < value < 1:
            raise PruneError(f"{name} (={value!r}) must be in (0, 1)")
    count = math.floor(math.log(last) / math.log(1 - decay) + 1e-9)
    return (*(round((1 - decay) ** i, 6) for i in range(1, count + 1)), 0.0)


def linear(levels: int = 10) -> tuple[float, ...]:
    """Return `levels` equally spaced levels below 1, the last of which is 0."""
    whole("levels", levels, 1)
    return tuple(round(1 - i / levels, 6) for i in range(1, levels + 1))


def cosine(levels: int = 10) -> tuple[float, ...]:
    """Return `levels` levels along half a cosine: slow at 1, fast in the middle, slow at 0."""
    whole("levels", levels, 1)
    return tuple(round((1 + math.cos(math.pi * i / levels)) / 2, 6) for i in range(1, levels + 1))


def _falling(levels: Sequence[float]) -> tuple[float, ...]:
    """Return the levels if they fall from at most 1 to 0."""
    try:
        falling = tuple(levels)
        right = all(a > b for a, b in zip((1.1, *falling), falling, strict=False))
        right = right and bool(falling) and falling[0] <= 1 and falling[-1] == 0
    except TypeError:
        right = False
    if not right:
        raise PruneError(f"levels (={levels!r}) must be numbers that fall from at most 1 to 0")
    return falling


def _rates(restarts: Sequence[float]) -> tuple[float, ...]:
    right = isinstance(restarts, Sequence) and not isinstance(restarts, str)
    if not right or not all(isinstance(rate, Real) and 0 < rate < math.inf for rate in restarts):
        raise PruneError(f"restarts (={restarts!r}) must be a list of positive learning rates")
    return tuple(restarts)


@dataclass(frozen=True)
class Plateau:
    """Hold a level until the validation metric has stopped improving.

    Args:
        max_epochs: Longest hold (the paper's best was within 35 epochs, 60 for the autoencoder).
        patience: Epochs without improvement after which the level ends.
        min_delta: Smallest change that counts as an improvement.
        mode: Whether the metric is to be large or small.
    """

    max_epochs: int = 35
    patience: int = 3
    min_delta: float = 0.0
    mode: Mode = "max"

    def __post_init__(self) -> None:
        whole("max_epochs", self.max_epochs, 1)
        whole("patience", self.patience, 1)
        if not isinstance(self.min_delta, Real) or not math.isfinite(self.min_delta):
            raise PruneError(f"min_delta (={self.min_delta!r}) must be a number")
        if self.mode not in ("max", "min"):
            raise PruneError(f"mode (={self.mode!r}) must be 'max' or 'min'")

    def over(self, metrics: Sequence[float]) -> bool:
        """Return whether a level with these metrics, one an epoch, has ended."""
        if len(metrics) >= self.max_epochs:
            return True
        sign = 1 if self.mode == "max" else -1
        best, waited = -math.inf, 0
        for value in metrics:
            improved = sign * value > best + self.min_delta
            best, waited = (sign * value, 0) if improved else (best, waited + 1)
        return waited >= self.patience


class Schedule:
    """α for every epoch of a pruning run.

    Iterating gives α for the next epoch, ready to be assigned to `blended.alpha`; a schedule that
    has ended starts anew.

    Args:
        levels: Values of α, falling to 0; see `steps`, `multiplicative`, `linear`, `cosine`.
        hold: Epochs at each level, or a `Plateau`.
        final_hold: Epochs at α = 0, or a `Plateau`; None: as `hold`.
        order: Groups or modules that go from 1 to 0 one after another; None: all at once.
        restarts: Learning rates; at the end α = 0 is held once more for each, restarted there.

    Raises:
        PruneError: Levels that do not fall to 0, a hold below one epoch, or an argument that is
            of another kind.
    """

    stage: int
    level: int
    epochs_at_level: int
    metrics: list[float]

    def __init__(
        self,
        levels: Sequence[float] | None = None,
        hold: int | Plateau = 1,
        final_hold: int | Plateau | None = None,
        order: Sequence[str] | None = None,
        restarts: Sequence[float] = (),
    ) -> None:
        self.levels = steps() if levels is None else _falling(levels)
        self.hold, self.final_hold = hold, hold if final_hold is None else final_hold
        for name, value in (("hold", self.hold), ("final_hold", self.final_hold)):
            if not isinstance(value, Plateau):
                whole(name, value, 1)
        listed = isinstance(order, Sequence) and not isinstance(order, str)
        if order is not None and (not listed or not order):
            raise PruneError(f"order (={order!r}) must be a list of groups or modules")
        self.order = None if order is None else tuple(order)
        self.restarts = _rates(restarts)
        self.reset()

    @property
    def alpha(self) -> float | dict[str, float]:
        """α of the current epoch: one number, or one for each entry of `order`."""
        value = self.levels[min(self.level, len(self.levels) - 1)]
        if self.order is None:
            return value
        return {
            name: 0.0 if i < self.stage else value if i == self.stage else 1.0
            for i, name in enumerate(self.order)
        }

    @property
    def learning_rate(self) -> float | None:
        """The learning rate from which the current level starts; None: the optimizer's own."""
        number = self.level - len(self.levels)
        return None if self.done or number < 0 else self.restarts[number]

    @property
    def done(self) -> bool:
        """Whether the last level has ended."""
        return self.stage >= self._stages

    @property
    def max_epochs(self) -> int:
        """The largest number of epochs that the schedule can take."""
        final = (1 + len(self.restarts)) * _longest(self.final_hold)
        return (self._stages * len(self.levels) - 1) * _longest(self.hold) + final

    @property
    def _stages(self) -> int:
        return 1 if self.order is None else len(self.order)

    def report(self, metric: float) -> None:
        """Say the validation metric of the current epoch."""
        self.metrics.append(float(metric))

    def advance(self) -> bool:
        """End the current epoch; return whether its level has ended, too."""
        self.epochs_at_level += 1
        if not self._level_over():
            return False
        self.metrics, self.epochs_at_level = [], 0
        self.level += 1
        if self.level == len(self.levels) + (len(self.restarts) if self._last_stage else 0):
            self.stage += 1
            self.level = 0 if not self.done else self.level
        return True

    @property
    def _last_stage(self) -> bool:
        return self.stage == self._stages - 1

    def _level_over(self) -> bool:
        last = self._last_stage and self.level >= len(self.levels) - 1
        hold = self.final_hold if last else self.hold
        if isinstance(hold, Plateau):
            if len(self.metrics) < self.epochs_at_level:
                raise PruneError("the schedule waits for a plateau: call report(metric) each epoch")
            return hold.over(self.metrics)
        return self.epochs_at_level >= hold

    def reset(self) -> None:
        """Go back to the first level."""
        self.stage = self.level = self.epochs_at_level = 0
        self.metrics = []

    def __iter__(self) -> Iterator[float | dict[str, float]]:
        if self.done:
            self.reset()
        while not self.done:
            yield self.alpha
            self.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule is, for a checkpoint."""
        return {
            "stage": self.stage,
            "level": self.level,
            "epochs_at_level": self.epochs_at_level,
            "metrics": list(self.metrics),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.stage, self.level = state["stage"], state["level"]
        self.epochs_at_level, self.metrics = state["epochs_at_level"], list(state["metrics"])

    def __repr__(self) -> str:
        return (
            f"Schedule(levels={self.levels}, hold={self.hold}, "
            f"final_hold={self.final_hold}, order={self.order}, restarts={self.restarts})"
        )


def _longest(hold: int | Plateau) -> int:
    return hold.max_epochs if isinstance(hold, Plateau) else hold

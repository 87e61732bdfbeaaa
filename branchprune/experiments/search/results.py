"""What a search has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.search.config import Value


@dataclass(frozen=True)
class Trial:
    """A run of a search.

    Attributes:
        number: Its number, from 0; its folder is called so.
        state: "too large": it has ended, with more multiply-adds than allowed.
        settings: What it has of each key that is searched.
        epochs: Epochs of which the validation metric is known.
        train_macs: Multiply-adds of its training, to the last whole epoch.
        score: Validation score of the small model; None: it has not ended.
        macs: What is left of the multiply-adds, as a part of the dense model's.
        params: The same of the parameters.
    """

    number: int
    state: Literal["done", "too large", "stopped", "failed", "broken off"]
    settings: Mapping[str, Value]
    epochs: int
    train_macs: float
    score: float | None = None
    macs: float | None = None
    params: float | None = None


@dataclass(frozen=True)
class Searched:
    """What a search has found.

    Attributes:
        name: Name of the experiment.
        metric: What is judged.
        wanted: Number of trials that the configuration names.
        max_macs: What is too large; None: nothing is.
        trials: Those that have begun, by number.
        dense: The dense training: `scores`, and `record` with `epochs` and `train_macs`, which is
            None if the file takes the dense model from a checkpoint.
        test: Test score of the best trial.
        command: Its command; None if there is no best trial.
    """

    name: str
    metric: MetricConfig
    wanted: int
    max_macs: float | None
    trials: Sequence[Trial]
    dense: Mapping[str, Mapping[str, float] | None]
    test: float | None
    command: str | None

    @property
    def best(self) -> Trial | None:
        """The trial with the best validation score of those that are not too large."""
        return best(self.trials, self.metric)

    @property
    def train_macs(self) -> float:
        """Multiply-adds of all trials."""
        return sum(trial.train_macs for trial in self.trials)

    @property
    def dense_macs(self) -> float | None:
        """Multiply-adds of the dense training; None: not known."""
        record = self.dense["record"]
        return record["train_macs"] if record else None

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first; those that are too large or have no score last."""
        order = {"done": 0, "too large": 1}
        sign = -1 if self.metric.mode == "max" else 1
        return sorted(
            self.trials,
            key=lambda each: (order.get(each.state, 2), sign * (each.score or 0), each.number),
        )

    def front(self) -> list[Trial]:
        """Return the trials with a score of which none is better and no larger, by their MACs."""
        sign = 1 if self.metric.mode == "max" else -1
        ended = [each for each in self.trials if each.score is not None]
        found: list[Trial] = []
        for each in sorted(ended, key=lambda each: (each.macs or 0, -sign * (each.score or 0))):
            if not found or sign * (each.score or 0) > sign * (found[-1].score or 0):
                found.append(each)
        return found


def best(trials: Sequence[Trial], metric: MetricConfig) -> Trial | None:
    """Return the trial that has ended with the best score and is not too large; None: none has."""
    done = [each for each in trials if each.state == "done"]
    sign = 1 if metric.mode == "max" else -1
    return max(done, key=lambda each: sign * (each.score or 0), default=None)

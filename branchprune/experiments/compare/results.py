"""What the runs of a comparison found, from its lines of results."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError
from branchprune.experiments.compare.config import Comparison, Run
from branchprune.experiments.files import read_lines, read_object

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the runs of a method at a budget found.

    Args:
        method: Name of the method.
        budget: Name of the budget.
        lines: Their lines, one a seed.
        dense_macs: Multiply-adds of the dense training; None if nobody kept them.
    """

    method: str
    budget: str
    lines: Sequence[Line]
    dense_macs: float | None

    @property
    def scores(self) -> list[float]:
        """Test scores of the small models."""
        return [line["final"] for line in self.lines]

    @property
    def mean(self) -> float:
        """Mean test score."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the test scores; None of one alone."""
        return deviation(self.scores)

    @property
    def compute(self) -> float | None:
        """Mean multiply-adds of training, as a multiple of the dense training's."""
        return self.average("train_macs") / self.dense_macs if self.dense_macs else None

    def average(self, key: str) -> float:
        """Return the mean of a number of the lines."""
        return statistics.fmean(line[key] for line in self.lines)


@dataclass(frozen=True)
class Results:
    """The lines of a comparison.

    Args:
        comparison: Which methods, budgets and seeds.
        lines: The newest line of each run, in the order of the runs.
        trained: What is known of the dense training: its "record" with "train_macs" and "epochs",
            and its "command"; empty if nobody kept it.
        others: Number of lines of methods, budgets or seeds that the configuration does not name.
    """

    comparison: Comparison
    lines: Sequence[Line]
    trained: Mapping[str, Any]
    others: int

    @property
    def dense_macs(self) -> float | None:
        """Multiply-adds of the dense training, forward and backward."""
        macs: float | None = (self.trained.get("record") or {}).get("train_macs")
        return macs

    @property
    def budgets(self) -> list[str]:
        """Names of the budgets of which there are lines."""
        there = {line["preset"] for line in self.lines}
        return [budget for budget in self.comparison.budgets if budget in there]

    def outcomes(self) -> list[Outcome]:
        """Return what was found, in order of budget, then method."""
        found: list[Outcome] = []
        for budget in self.comparison.budgets:
            for method in self.comparison.methods:
                mine = [x for x in self.lines if (x["method"], x["preset"]) == (method, budget)]
                found += [Outcome(method, budget, mine, self.dense_macs)] if mine else []
        return found

    def ranking(self) -> dict[str, dict[str, Outcome]]:
        """Return the outcomes by method and budget: the best at the last budget first.

        Methods without the last budget come behind those that have it.
        """
        budgets, sign = (
            [*self.comparison.budgets],
            -1 if self.comparison.metric.mode == "max" else 1,
        )
        by_method: dict[str, dict[str, Outcome]] = {}
        for outcome in self.outcomes():
            by_method.setdefault(outcome.method, {})[outcome.budget] = outcome

        def place(method: str) -> tuple[int, float]:
            *_, last = by_method[method].values()
            rank = sign * last.mean if math.isfinite(last.mean) else math.inf
            return -budgets.index(last.budget), rank

        return {method: by_method[method] for method in sorted(by_method, key=place)}

    def dense(self) -> float:
        """Return the test score of the dense model, as the runs measured it."""
        return statistics.fmean(line["dense"] for line in self.lines)

    def only(self, keeps: Callable[[Line], bool]) -> Results:
        """Return the results with some of their lines."""
        return replace(self, lines=[line for line in self.lines if keeps(line)])

    def missing(self) -> list[Run]:
        """Return the runs without a line."""
        there = {*map(run_of, self.lines)}
        return [run for run in self.comparison.runs() if run not in there]


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None of one value, NaN where one is not finite."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def run_of(line: Line) -> Run:
    """Return the run that a line is of."""
    return Run(line["method"], line["preset"], line["seed"])


def todays_command(comparison: Comparison, line: Line, root: Path) -> str:
    """Return the command that makes the run of a line today.

    Args:
        comparison: The comparison.
        line: A line of it; its own command may be of an older program.
        root: The folder that paths are relative to.
    """
    return shlex.join([*comparison.command(root), "--only", run_of(line).name])


def dense_file(comparison: Comparison, path: Path) -> Path:
    """Return where the record of the dense training is kept, beside the lines of results."""
    return path.with_name(f"{comparison.name}.dense.json")


def read(comparison: Comparison, path: Path) -> Results:
    """Read the results of a comparison.

    Args:
        comparison: The comparison.
        path: The file of its lines, which may be missing.

    Raises:
        PruneError: Lines of several data sets, or of another metric, are in the file.
    """
    lines = read_lines(path) if path.exists() else []
    mine = [line for line in lines if line["experiment"] == comparison.experiment]
    newest = {run_of(line): line for line in sorted(mine, key=lambda line: str(line["date"]))}
    known = [newest[run] for run in comparison.runs() if run in newest]
    datasets = sorted({line["dataset"] for line in known})
    if len(datasets) > 1:
        raise PruneError(f"{path} mixes the data sets {' and '.join(datasets)}")
    for label in {line["metric"] for line in known} - {comparison.metric.label}:
        raise PruneError(
            f"{path} has the metric {label!r}, and the file names {comparison.metric.label!r}"
        )
    dense = read_object(dense_file(comparison, path)) or {}
    return Results(comparison, known, dense, len(newest) - len(known))

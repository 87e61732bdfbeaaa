"""What a run that has not ended has come to, by what it has logged so far."""

from __future__ import annotations

import sys
from pathlib import Path

from branchprune.experiments.metrics_csv import earlier_rows

PENALTY = "sparsify"
"""The stage in which the dense model is trained, of which nothing is pruned yet."""


def scores(folder: Path, metric: str) -> list[float]:
    """Return the validation metric after each epoch of pruning, those of all stages in a row.

    While a branch is blended in, it is the branch alone that is judged.

    Args:
        folder: Folder of the run.
        metric: Name of the metric.
    """
    found = []
    for stage, rows in _tables(folder).items():
        for row in rows if stage != PENALTY else []:
            value = row.get(f"{metric}_branch", row.get(metric))
            found += [] if value is None else [float(value)]
    return found


def train_macs(folder: Path) -> int:
    """Return the multiply-adds of the training so far, to the last epoch that was logged."""
    spent = 0.0
    for rows in _tables(folder).values():
        values = [float(row[name]) for row in rows if (name := "cost/train_macs") in row]
        spent += max(values, default=0.0)
    return round(spent)


def logged(folder: Path) -> list[tuple[str, int, int]]:
    """Return what changes whenever a run has logged something."""
    found = [(path, path.stat()) for path in folder.glob("*/metrics.csv")]
    return sorted((path.parent.name, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def _tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return the whole rows of each stage's table, in the order in which the stages were made."""
    paths = sorted(folder.glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
    return {path.parent.name: earlier_rows(path, sys.maxsize) for path in paths}

"""metrics.csv, the table in which Lightning's CSVLogger keeps what a training logs."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the `metrics.csv` of Lightning's CSVLogger: one dictionary an epoch, in their order.

    The logger writes several rows an epoch with most cells empty; the last value that is there
    counts. A row without an epoch (`LearningRateMonitor` writes them when an epoch starts)
    belongs to the next one that has it; after the last of those it is left out.

    Raises:
        PruneError: The file is missing, or a cell is not a number.
    """
    if not path.is_file():
        raise PruneError(f"{path}: there is no such file")
    epochs: dict[float, dict[str, float]] = {}
    waiting: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, cells in enumerate(csv.DictReader(file), start=2):
            for column, cell in cells.items():
                if cell:
                    waiting[column] = _number(cell, f"{path}, line {line}: column {column!r}")
            if cells.get("epoch"):
                epochs.setdefault(waiting["epoch"], {}).update(waiting)
                waiting = {}
    return [epochs[epoch] for epoch in sorted(epochs)]


def earlier_rows(path: Path, epoch: int) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv that were written before an epoch began."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]  # a full disk tears the last one
    rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    before = [i for i, row in enumerate(rows) if float(row.get("epoch", "inf")) < epoch]
    return rows[: before[-1] + 1] if before else []


def table_text(rows: list[dict[str, str]], names: list[str]) -> str:
    """Return rows as the text of a metrics.csv."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _number(cell: Any, where: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError) as error:
        raise PruneError(f"{where} (={cell!r}) must be a number") from error

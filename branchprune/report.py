"""A finished run as one HTML file that opens offline, made from its result files alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from branchprune import plots
from branchprune.errors import PruneError

_NUMBER = (int, float)
_LATENCY = {"median_s": _NUMBER, "iqr_s": _NUMBER, "batch_size": int, "device": str}
_COST = {
    **dict.fromkeys(("channels", "params", "macs", "file_bytes", "peak_memory_bytes"), int),
    "latency": _LATENCY,
}
_GROUP = {
    "name": str,
    "layers": [str],
    "width": int,
    "kept": int,
    "macs_share": _NUMBER,
    "reason": (str, type(None)),
}
_SCORE = {"val": _NUMBER, "test": _NUMBER}
_RESULT = {
    **dict.fromkeys(("experiment", "command", "date", "hardware"), str),
    "seed": int,
    "commit": (str, type(None)),
    "versions": {},
    "metric": {"name": str, "mode": {"max", "min"}, "format": {"percent", "number"}},
    "scores": {"dense": _SCORE, "blended_at_zero": {"val": _NUMBER}, "small": _SCORE},
    "cost": {"dense": _COST, "small": _COST},
    "collapse": dict.fromkeys(
        ("relative_error", "tolerance", "relative_error_own_dtype"), _NUMBER
    ),
    "plan": {"groups": [_GROUP]},
    "epochs": {"dense": int, "prune": int},
    "seconds": {"dense": _NUMBER, "prune": _NUMBER},
}

_COUNTS = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, ""))
_SIZES = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B"))
_TIMES = ((60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs"))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Row(NamedTuple):
    """One line of the table that compares the dense with the small model."""

    label: str
    note: str
    before: str
    after: str
    change: str


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from the result files in it.

    ```python
    write_report(Path("runs/digits"))
    ```

    Args:
        folder: Holds `result.json`, `prune/metrics.csv` and, unless the dense model came from a
            checkpoint, `dense/metrics.csv`.

    Returns:
        Path of the report: one file, which refers to no other.

    Raises:
        PruneError: A file is missing or malformed; the message names it and the key or column.
    """
    result = _read_result(folder / "result.json")
    prune = read_metrics(folder / "prune" / "metrics.csv")
    dense_path = folder / "dense" / "metrics.csv"
    dense = read_metrics(dense_path) if dense_path.exists() else []
    _require_columns(prune, result["metric"]["name"], folder / "prune" / "metrics.csv")
    blending = partial(plots.blending, prune, result["metric"], result["scores"]["dense"]["val"])
    charts = {
        "blending": [blending(), blending(width=4.2)],
        "losses": [plots.losses(dense, "epochs of dense training")] * bool(dense)
        + [plots.losses(prune, "epochs of blending")],
    }
    page = _environment().get_template("report.html.j2").render(
        **result,
        rows=compare(result),
        widest=max((group["width"] for group in result["plan"]["groups"]), default=1),
        charts={name: [Markup(svg) for svg in svgs] for name, svgs in charts.items()},
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the `metrics.csv` of Lightning's CSVLogger: one dictionary an epoch, in their order.

    The logger writes several rows an epoch with most cells empty; the last value that is there
    counts. A row without an epoch (as `LearningRateMonitor` writes them, when an epoch starts)
    belongs to the next one that has it.

    Raises:
        PruneError: The file is missing, or a cell is not a number.
    """
    if not path.is_file():
        raise PruneError(f"{path}: there is no such file")
    epochs: dict[float, dict[str, float]] = {}
    waiting: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, cells in enumerate(csv.DictReader(file), start=2):
            waiting |= {
                name: _number(cell, f"{path}, line {line}: column {name!r}")
                for name, cell in cells.items()
                if cell
            }
            if cells.get("epoch"):
                epochs.setdefault(waiting["epoch"], {}).update(waiting)
                waiting = {}
    return [epochs[epoch] for epoch in sorted(epochs)]


def compare(result: Mapping[str, Any]) -> dict[str, Row]:
    """Make the lines of the table before → after from the content of `result.json`."""
    metric, (dense, small) = result["metric"], _pair(result["cost"])
    before, after = dense["latency"], small["latency"]
    spread = f"{_scaled(before['iqr_s'], _TIMES)} → {_scaled(after['iqr_s'], _TIMES)}"
    setting = f"median, batch {before['batch_size']} on {before['device']}; IQR {spread}"
    seconds, size, count = partial(_scaled, units=_TIMES), partial(_scaled, units=_SIZES), "{:,}".format
    counted = "multiply-adds of conv and linear layers, one example"
    return {
        "test": _score_row("test", result),
        "val": _score_row("val", result),
        "channels": Row("Channels", "outputs of all layers", *_cells(dense, small, "channels", count)),
        "params": Row("Parameters", "", *_cells(dense, small, "params", count)),
        "macs": Row("MACs", counted, *_cells(dense, small, "macs", count)),
        "file": Row("File size", "", *_cells(dense, small, "file_bytes", size)),
        "latency": Row("Latency", setting, *_cells(before, after, "median_s", seconds)),
        "memory": Row("Peak memory", "", *_cells(dense, small, "peak_memory_bytes", size)),
    }

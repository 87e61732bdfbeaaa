"""A finished run as one HTML file that opens offline, made from its result files alone."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from branchprune.errors import PruneError
from branchprune.experiments.files import unsealed, write_whole
from branchprune.experiments.metrics_csv import read_metrics
from branchprune.reports import plots, quantities
from branchprune.reports.before_after import compare, dry, headline
from branchprune.reports.in_runtime import in_runtime
from branchprune.reports.summary import Summary
from branchprune.targets.goal import amount_of

REACHED = ("most", "before", "after", "predicted", "uniform")
_NUMBER, _MAYBE_TEXT = (int, float), (str, type(None))
_COST = {
    **dict.fromkeys(("channels", "params", "macs", "file_bytes", "peak_memory_bytes"), int),
    "latency": {
        **{"median_s": _NUMBER, "iqr_s": (*_NUMBER, type(None))},
        **{"batch_size": int, "device": str},
    },
}
_TARGET = {
    "reached": [{"what": str, **dict.fromkeys(REACHED, _NUMBER)}],
    **dict.fromkeys(("change", "uniform"), _NUMBER),
    **{"errors": [_NUMBER], "limited": [str], "trade_off": [[_NUMBER]]},
}
_EXPORT = {
    **dict.fromkeys(("runtime", "precision"), str),
    "threads": int,
    "files": [{"model": str, "bits": int}],
}
_SPEED_UP = dict.fromkeys(("median", "low", "high"), _NUMBER)
_STAGE = {"seconds": _NUMBER, "loader_share": _NUMBER}
_GROUP = {"name": str, "layers": [str], "width": int, "kept": int, "reason": _MAYBE_TEXT}
_SCORE = {"val": _NUMBER, "test": _NUMBER}
_RESULT = {
    **dict.fromkeys(("experiment", "command", "date", "hardware"), str),
    "seed": int,
    "commit": _MAYBE_TEXT,
    "versions": {},
    "configuration": str,
    "recalibrate": int,
    "metric": {
        **dict.fromkeys(("column", "label"), str),
        "mode": {"max", "min"},
        "format": {"percent", "number"},
    },
    "scores": {"dense": _SCORE, "small": _SCORE},
    "rounds": [{"val": _NUMBER, "params": int}],
    "cost": {"dense": _COST, "small": _COST},
    "collapse": dict.fromkeys(("relative_error", "tolerance", "relative_error_own_dtype"), _NUMBER),
    "plan": {"groups": [{**_GROUP, "macs_share": _NUMBER}]},
    "stages": {},
    "epochs": {"dense": _NUMBER, "prune": _NUMBER},
    "seconds": {"dense": _NUMBER, "prune": _NUMBER},
}

_FILTERS = ("share", "power", "duration", "epochs")
_PHASES = {
    "dense": "epochs of dense training",
    "depth": "epochs of fading blocks",
    "sparsify": "epochs with the penalty",
    "prune": "epochs of blending",
    "finetune": "epochs of fine-tuning",
}


_WIDTHS, _HALF = (7.8, 4.2), (4.4,)
"""Widths of charts in inches: of the page on a screen and on a phone; of half the page on both."""


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
    summary = Summary(result)
    text = _page().render(
        **result,
        **_charts(folder, result, summary),
        rows=compare(result),
        headline=headline(result),
        exported=in_runtime(result),
        dry=dry(result),
        summary=summary,
        waited=_waited(result["stages"]),
        amount_of=amount_of,
        widest=max((group["width"] for group in result["plan"]["groups"]), default=1),
    )
    path = folder / "report.html"
    write_whole(path, text)
    return path


@cache
def _page() -> Template:
    """Return the page, which is compiled once."""
    loader = PackageLoader("branchprune.reports", "")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page.filters |= {name: getattr(quantities, name) for name in _FILTERS}
    page.filters["score"] = _score
    return page.get_template("report.html.j2")


@pass_context
def _score(page: Context, value: float) -> str:
    """Return a score as the metric of the run is told."""
    return quantities.score(value, form=page["metric"]["format"])


def _waited(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the share of the time that waited for data, of the dense training and the pruning."""
    parts = {
        "dense training": [stages[name] for name in stages if name == "dense"],
        "pruning": [stages[name] for name in stages if name != "dense"],
    }
    return {
        part: fmean(
            (stage["loader_share"] for stage in each),
            [max(stage["seconds"], 0.1) for stage in each],  # they are rounded to that
        )
        for part, each in parts.items()
        if each
    }


def _charts(folder: Path, result: Mapping[str, Any], summary: Summary) -> dict[str, list[Any]]:
    """Draw rounds or blending, where there are, in two widths, and the losses of each phase.

    The losses of a phase are drawn for half the page, or for all of it where they stand alone.
    """
    score, blended = result["scores"]["dense"]["val"], folder / "prune" / "metrics.csv"
    draw: Callable[..., str] | None = None
    if result["rounds"]:
        draw = partial(_draw_rounds, result, score)
    elif summary.algorithm == "blend":
        rows = _blending_rows(blended, result["metric"]["column"])
        draw = partial(plots.blending, rows, result["metric"], score)
    phases = [(folder / stage / "metrics.csv", title) for stage, title in _PHASES.items()]
    phases = [(path, title) for path, title in phases if path.exists()]
    widths = _WIDTHS if len(phases) == 1 else _HALF
    points, reached = result["plan"].get("trade_off"), result["plan"].get("reached")
    trade_off = partial(plots.trade_off, points, reached[0]["what"]) if points else None
    return {
        "course": _in_widths(draw, _WIDTHS) if draw else [],
        "trade_off": _in_widths(trade_off, _WIDTHS) if trade_off else [],
        "losses": [
            _in_widths(partial(plots.losses, read_metrics(path), title), widths)
            for path, title in phases
        ],
    }


def _in_widths(draw: Callable[..., str], widths: Sequence[float]) -> list[Markup]:
    return [Markup(draw(width=width)) for width in widths]


def _draw_rounds(result: Mapping[str, Any], score: float, width: float) -> str:
    whole = result["cost"]["dense"]["params"]
    points = [(each["params"] / whole, each["val"]) for each in result["rounds"]]
    return plots.rounds([(1.0, score), *points], result["metric"], width)


def _blending_rows(path: Path, metric: str) -> list[dict[str, float]]:
    rows = read_metrics(path)
    for column in (metric, f"{metric}_branch"):
        if not any(column in row for row in rows):
            raise PruneError(f"{path}: column {column!r} is missing or empty")
    return rows


def _read_result(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PruneError(f"{path}: there is no such file")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result = unsealed(result) if isinstance(result, dict) else result
    except (OSError, ValueError) as error:
        raise PruneError(f"{path}: cannot be read as JSON ({error})") from error
    _check(result, _RESULT, "", path)
    _check(result["stages"], dict.fromkeys(result["stages"], _STAGE), "stages", path)
    if "trade_off" in result["plan"]:  # the plan has a target
        _check(result["plan"], _TARGET, "plan", path)
    if result.get("export") is not None:
        _check(result["export"], _EXPORT, "export", path)
    if result["cost"].get("speed_up") is not None:  # older runs and dry ones have none
        _check(result["cost"]["speed_up"], _SPEED_UP, "cost.speed_up", path)
    dense, small = (result["cost"][model]["latency"] for model in ("dense", "small"))
    if any(dense[key] != small[key] for key in ("batch_size", "device")):
        raise PruneError(
            f"{path}: key 'cost.small.latency' was measured unlike 'cost.dense.latency'"
        )
    return dict(result)


def _check(value: Any, shape: Any, key: str, path: Path) -> None:
    """Raise for the first part of a JSON value that is missing or not of the expected shape."""
    if isinstance(shape, dict | list):
        fits = isinstance(value, type(shape))
    else:
        fits = value in list(shape) if isinstance(shape, set) else isinstance(value, shape)
    if not fits:
        raise PruneError(f"{path}: key {key!r} cannot be {reprlib.repr(value)}")
    if isinstance(shape, dict):
        for name, inner in shape.items():
            inside = f"{key}.{name}" if key else name
            if name not in value:
                raise PruneError(f"{path}: key {inside!r} is missing")
            _check(value[name], inner, inside, path)
    elif isinstance(shape, list):
        for i, item in enumerate(value):
            _check(item, shape[0], f"{key}[{i}]", path)

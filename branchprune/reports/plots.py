"""Charts of a run as inline SVG, drawn from the rows of its metrics files.

The colours in the SVG are CSS variables (`--ink`, `--blended`, …), so the page that holds a chart
decides what they look like in light and in dark mode; its text is text in the page's own font.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

Rows = Sequence[Mapping[str, float]]

_COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    "shade": "#040404",
    "blended": "#050505",
    "branch": "#060606",
}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": _COLOURS["rule"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "figure.facecolor": "none",
    "grid.color": _COLOURS["rule"],
    "grid.linewidth": 0.5,
    "xtick.color": _COLOURS["rule"],
    "ytick.color": _COLOURS["rule"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_LOG_FROM = 50  # times the smallest value, from where an error metric is drawn on a log axis


def blending(rows: Rows, metric: Mapping[str, str], dense: float, width: float = 7.8) -> str:
    """Draw the metric of the blended model and of the branch alone, with α on a second axis.

    Values measured after an epoch stand at its end, α over the epoch it was used in.

    Args:
        rows: Epochs of the blending phase, as `metrics_csv.read_metrics` returns them.
        metric: Its "column", "label", "mode" ("max" or "min") and "format" ("percent" or "number").
        dense: The dense model's validation score.
        width: Width of the figure in inches.

    Returns:
        One `<svg>` element.
    """
    with _figure(f"blending {width}", width, 3.6) as (figure, svg):
        axes = figure.subplots()
        axes.set(xlabel="epochs of blending", ylabel=metric["label"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles: list[Artist | None] = [
            _curve(axes, rows, metric["column"], "blended model", "blended", 1.6),
            _curve(axes, rows, f"{metric['column']}_branch", "branch alone", "branch", 2.2),
            axes.axhline(dense, color=_COLOURS["ink"], lw=1, ls=(0, (6, 3)), label="dense model"),
        ]
        _scale(axes, metric)
        second = axes.twinx()
        axes.set_zorder(second.get_zorder() + 1)
        handles += [*_alphas(second, rows), _shade(second, rows)]
        _legend(figure, handles)
    return svg.getvalue()


def losses(rows: Rows, title: str, width: float = 4.4) -> str:
    """Draw the training and validation loss above the learning rate.

    Args:
        rows: Epochs of one training phase, as `metrics_csv.read_metrics` returns them.
        title: What the epochs on the x axis are, such as "epochs of blending".
        width: Width of the figure in inches.

    Returns:
        One `<svg>` element.
    """
    with _figure(f"losses {title} {width}", width, 3.4) as (figure, svg):
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
        top.set_ylabel("loss")
        bottom.set(xlabel=title, ylabel="learning rate")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [
            _curve(top, rows, "loss/train", "training", "muted", 1.2),
            _curve(top, rows, "loss/val", "validation", "ink", 1.6),
        ]
        _stairs(bottom, *_points(rows, "lr"), lw=1)
        bottom.set_ylim(bottom=0)
        for axes in (top, bottom):
            axes.spines["right"].set_visible(False)
        _legend(figure, handles)
    return svg.getvalue()


def rounds(
    points: Sequence[tuple[float, float]], metric: Mapping[str, str], width: float = 7.8
) -> str:
    """Draw the metric against the share of the parameters that is left, round by round.

    Args:
        points: (share of the parameters left, metric), the dense model first.
        metric: See `blending`.
        width: Width of the figure in inches.

    Returns:
        One `<svg>` element.
    """
    with _figure(f"rounds {width}", width, 3.6) as (figure, svg):
        axes = figure.subplots()
        axes.set(xlabel="parameters left", ylabel=metric["label"], xscale="log")
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        label = "after fine-tuning"
        shares, values = zip(*points, strict=True)
        line = axes.plot(
            shares, values, color=_COLOURS["branch"], lw=1.6, marker="o", ms=4, label=label
        )[0]
        dense = axes.axhline(
            values[0], color=_COLOURS["ink"], lw=1, ls=(0, (6, 3)), label="dense model"
        )
        _scale(axes, metric)
        _legend(figure, [line, dense])
    return svg.getvalue()


def trade_off(points: Sequence[tuple[float, float, float]], what: str, width: float = 7.8) -> str:
    """Draw the predicted change of the output against the share of a cost that is left.

    Args:
        points: (share, change at the chosen widths, change at one share of all).
        what: The cost.
        width: Width of the figure in inches.

    Returns:
        One `<svg>` element.
    """
    with _figure(f"trade-off {width}", width, 3.2) as (figure, svg):
        axes = figure.subplots()
        axes.set(xlabel=f"{what} left", ylabel="change of the output", yscale="log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        shares, chosen, uniform = zip(*points, strict=True)
        drawn = [
            axes.plot(shares, values, color=_COLOURS[colour], lw=1.6, ls=ls, label=label)[0]
            for values, colour, ls, label in (
                (chosen, "branch", "solid", "widths chosen"),
                (uniform, "ink", "dashed", "one share of all"),
            )
        ]
        _legend(figure, drawn)
    return svg.getvalue()


def alpha_courses(rows: Rows) -> list[tuple[list[str], list[tuple[float, float]]]]:
    """Find the distinct courses of α: the groups that share one, and its points (epoch, α)."""
    columns = sorted({name for row in rows for name in row if name.startswith("alpha/")})
    courses: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for column in columns:
        course = tuple((row["epoch"], row[column]) for row in rows if column in row)
        courses.setdefault(course, []).append(column.removeprefix("alpha/"))
    return [(groups, list(course)) for course, groups in courses.items()]


@contextmanager
def _figure(salt: str, width: float, height: float) -> Iterator[tuple[Figure, StringIO]]:
    """Give a figure to draw on, and a buffer that holds its SVG once the block ends."""
    settings: dict[str, Any] = {**_STYLE, "svg.hashsalt": salt}
    with style.context(["default", settings]):
        figure, raw, clean = (
            Figure(figsize=(width, height), layout="constrained"),
            StringIO(),
            StringIO(),
        )
        yield figure, clean
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(raw, format="svg", metadata=nothing)
    svg = re.sub(r'<g id="[^"]*"', "<g", raw.getvalue()[raw.getvalue().index("<svg") :])
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    clean.write(svg)


def _points(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    present = [row for row in rows if column in row]
    return [row["epoch"] + 1 for row in present], [row[column] for row in present]


def _curve(
    axes: Axes, rows: Rows, column: str, label: str, colour: str, thickness: float
) -> Line2D | None:
    epochs, values = _points(rows, column)
    if not values:
        return None
    marker = "o" if len(values) == 1 else ""
    (line,) = axes.plot(
        epochs, values, color=_COLOURS[colour], lw=thickness, marker=marker, ms=4, label=label
    )
    return line


def _stairs(axes: Axes, ends: list[float], values: list[float], **settings: Any) -> Line2D | None:
    """Draw values that hold for the whole epoch that ends at `ends`."""
    if not values:
        return None
    xs, ys = [ends[0] - 1, *ends], [values[0], *values]
    (line,) = axes.step(xs, ys, where="pre", color=_COLOURS["muted"], **settings)
    return line


def _scale(axes: Axes, metric: Mapping[str, str]) -> None:
    if metric["format"] == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        return
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    if metric["mode"] == "min" and values.max() > _LOG_FROM * values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _alphas(axes: Axes, rows: Rows) -> list[Line2D | None]:
    """Draw every course of α; beyond four of them only the first is named."""
    axes.set(ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("α", rotation=0, va="center", labelpad=8)
    axes.grid(visible=False)
    courses = alpha_courses(rows)
    crowded = len(courses) > len(_DASHES)
    lines = []
    for i, (groups, points) in enumerate(courses):
        ends, values = [epoch + 1 for epoch, _ in points], [alpha for _, alpha in points]
        look = {"lw": 0.6, "alpha": 0.6} if crowded else {"lw": 1, "ls": _DASHES[i]}
        label = "α, a line a group" if crowded else _alpha_label(groups, len(courses) == 1)
        lines.append(_stairs(axes, ends, values, label=label, **look))
    return lines[:1] if crowded else lines


def _alpha_label(groups: Sequence[str], alone: bool) -> str:
    if alone:
        return "α"
    name = groups[0] if len(groups[0]) <= 14 else f"…{groups[0][-13:]}"
    return f"α {name}" + (f" + {len(groups) - 1} more" if groups[1:] else "")


def _shade(axes: Axes, rows: Rows) -> Artist | None:
    """Shade the epochs in which every α is zero."""
    patch = None
    alphas = [
        (row["epoch"], [v for name, v in row.items() if name.startswith("alpha/")]) for row in rows
    ]
    for at_zero, run in groupby((p for p in alphas if p[1]), key=lambda point: not any(point[1])):
        epochs = [epoch for epoch, _ in run]
        if at_zero:
            span = (epochs[0], epochs[-1] + 1)
            patch = axes.axvspan(*span, color=_COLOURS["shade"], lw=0, zorder=0, label="α = 0")
    return patch


def _legend(figure: Figure, handles: Sequence[Artist | None]) -> None:
    """Put the legend above the chart, in one line where it fits."""
    shown = [handle for handle in handles if handle is not None]
    letters = sum(len(str(handle.get_label())) + 6 for handle in shown)
    columns = (
        len(shown) if letters < 14 * figure.get_figwidth() else round(figure.get_figwidth() / 2)
    )
    figure.legend(
        handles=shown, loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.4
    )

"""The plots of a comparison: the metric by method, against MACs left and training compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from branchprune.experiments.compare.results import Outcome, Results
from branchprune.reports.comparison_by_method import by_method
from branchprune.reports.plot_style import COLOURS, DENSE, MUTED, STYLE, in_percent

MARKERS = "os^Dv*P"
ASIDE, LINE = 7.0, 12.0
"""Points between marks that stand side by side, and between lines of text."""
LEAD = {"arrowstyle": "-", "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}
Key = tuple[str, str]
Places = Mapping[Key, float]
"""A place on the x axis by method and budget."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write metric_by_method, metric_vs_macs and metric_vs_training.png; return their paths.

    The last is left out if nobody kept what the dense training spent.

    Args:
        results: At least one line.
        folder: Where to write; it exists.
    """
    outcomes = results.outcomes()
    macs = {_key(each): 1 - each.average("macs_removed") for each in outcomes}
    compute = {_key(each): each.compute for each in outcomes if each.compute is not None}
    panels = [
        ("metric_vs_macs", "MACs left", macs, True),
        ("metric_vs_training", "training multiply-adds / dense training's", compute, False),
    ]
    with style.context(["default", STYLE]):
        figures = {"metric_by_method": by_method(results)}
        for name, label, places, percent in panels:
            if len(places) == len(outcomes):
                figures[name] = _figure(results, places, label, percent)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return [folder / f"{name}.png" for name in figures]


def _key(outcome: Outcome) -> Key:
    return outcome.method, outcome.budget


def _figure(results: Results, places: Places, label: str, percent: bool) -> Figure:
    ranking, metric = results.ranking(), results.comparison.metric
    figure = Figure((8.4, max(3.6, 0.26 * len(ranking) + 1.4)))
    figure.subplots_adjust(right=0.66, top=1 - 0.4 / figure.get_figheight())
    axes = figure.subplots()
    axes.set(xlabel=label, ylabel=f"test {metric.label}", xlim=_limits([*places.values()]))
    formatter = FuncFormatter(in_percent)
    for axis, fraction in ((axes.xaxis, percent), (axes.yaxis, metric.format == "percent")):
        if fraction:
            axis.set_major_formatter(formatter)
    axes.axhline(results.dense(), **DENSE)
    shown = _side_by_side(axes, places, [*ranking], percent)
    axes.set_xlim(_limits([*places.values(), *shown.values()]))
    _marks(axes, results, shown)
    _names(axes, results, shown, LINE / (72 * figure.get_figheight() * axes.get_position().height))
    _legend(figure, results)
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(0.3 * (high - low), 0.1 * abs(high), 1e-9)
    return low - pad, high + pad


def _side_by_side(axes: Axes, places: Places, methods: Sequence[str], percent: bool) -> Places:
    """Return places at which marks that are nearly at one stand side by side.

    The best method stands on the left: then the lines that lead to the names on the right cross
    no mark of another. Places nearby keep marks closer together, so that the order of places is
    that shown. Below four or more it is written what their place is.
    """
    low, high = axes.get_xlim()
    groups: list[list[Key]] = []
    for key in sorted(places, key=lambda key: places[key]):
        if not groups or places[key] - places[groups[-1][0]] > 0.01 * (high - low):
            groups.append([])
        groups[-1].append(key)
    figure = axes.get_figure(root=True)
    assert figure is not None
    widest = ASIDE * (high - low) / (72 * figure.get_figwidth() * axes.get_position().width)
    middles = [sum(places[key] for key in group) / len(group) for group in groups]
    shown: dict[Key, float] = {}
    written = 0
    for group, middle in zip(groups, middles, strict=True):
        names = sorted({method for method, _ in group}, key=methods.index)
        near = min(
            (abs(middle - other) for other in middles if other != middle), default=high - low
        )
        step = min(widest, 0.8 * near / len(names))
        for method, budget in group:
            aside = step * (names.index(method) - (len(names) - 1) / 2)
            shown[method, budget] = aside + (middle if len(names) > 1 else places[method, budget])
        if len(names) > 3:
            text = f"all ≈ {in_percent(middle) if percent else f'{middle:.2f}'}"
            place = (middle, 0.015 + 0.025 * (written % 2))
            where = axes.get_xaxis_transform()
            axes.text(*place, text, fontsize=8, ha="center", color=MUTED, transform=where)
            written += 1
    return shown


def _marks(axes: Axes, results: Results, shown: Places) -> None:
    """Draw a mark with its standard deviation a method and budget; a line joins a method's."""
    budgets = results.budgets
    for i, (method, found) in enumerate(results.ranking().items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [shown[method, budget] for budget in found]
        means = [each.mean for each in found.values()]
        axes.plot(places, means, lw=0.7, alpha=0.5, color=colour)
        for place, (budget, each) in zip(places, found.items(), strict=True):
            look = _look(budgets.index(budget), len(budgets))
            look |= {"color": colour, "elinewidth": 1, "capsize": 2, "zorder": 3}
            axes.errorbar(place, each.mean, yerr=each.deviation, **look)


def _look(index: int, count: int) -> dict[str, Any]:
    """Return the mark of a budget; that of the last is filled."""
    marker = {"marker": MARKERS[index % len(MARKERS)], "ms": 5}
    return marker if index == count - 1 else {**marker, "mfc": "white"}


def _names(axes: Axes, results: Results, shown: Places, gap: float) -> None:
    """Write the methods' names beside the axes and lead a line from each to its last mark.

    Args:
        axes: Where the marks are.
        results: What they show.
        shown: Where they are.
        gap: Height of a line of text, as a fraction of the axes.
    """
    low, high = axes.get_ylim()
    last = {method: [*found.values()][-1] for method, found in results.ranking().items()}
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(last)}
    rising = sorted(last.values(), key=lambda each: (each.mean, -shown[_key(each)]))
    wanted = [(each.mean - low) / (high - low) for each in rising]
    for each, y in zip(rising, _spread(wanted, gap), strict=True):
        axes.annotate(
            each.method,
            (shown[_key(each)], each.mean),
            xytext=(1.04, y),
            textcoords="axes fraction",
            va="center",
            arrowprops={**LEAD, "color": colours[each.method]},
            zorder=2,
        )


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return rising places at least a gap apart, near those wanted and none above 1."""
    up, down = [*wanted], [*wanted]
    for i in range(1, len(wanted)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-i - 1] = min(down[-i - 1], down[-i] - gap)
    placed = [(high + low) / 2 for high, low in zip(up, down, strict=True)]
    highest = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], highest)
        highest = placed[i] - gap
    return placed


def _legend(figure: Figure, results: Results) -> None:
    """Say above the plot which mark is which budget."""
    budgets = results.budgets
    handles = [
        Line2D([], [], color=MUTED, ls="", label=budget, **_look(i, len(budgets)))
        for i, budget in enumerate(budgets)
    ]
    handles.append(Line2D([], [], **DENSE, label="dense model"))
    figure.legend(handles=handles, loc="upper left", ncols=len(handles))

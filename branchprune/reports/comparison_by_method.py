"""The plot of a comparison of many methods: a row each, a panel for each budget."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from branchprune.experiments.compare.results import Outcome, Results
from branchprune.reports.plot_style import COLOURS, DENSE, MUTED, in_percent

REFERENCE: dict[str, Any] = {"color": MUTED, "lw": 0.8, "ls": ":", "zorder": 1}
MARK: dict[str, Any] = {
    **{"fmt": "o", "ms": 4, "color": COLOURS[0], "elinewidth": 1, "capsize": 2, "zorder": 3}
}
ROW, NAMES, PANEL = 0.2, 2.6, 3.0
"""Height of a row, width of the names and of a panel, in inches."""


def by_method(results: Results) -> Figure:
    """Draw the test scores of every method, a row each in order of rank, and a panel a budget.

    A mark is the mean over seeds, its line the sample standard deviation on either side, small
    dots are single seeds. Above each panel stands what its runs trained for.

    Args:
        results: At least one line.
    """
    ranking, metric, budgets = results.ranking(), results.comparison.metric, results.budgets
    size = NAMES + PANEL * len(budgets), ROW * len(ranking) + 1.5
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        rows = {i: found[budget] for i, found in enumerate(ranking.values()) if budget in found}
        _panel(axes, rows)
        axes.axvline(results.dense(), **DENSE)
        reference = ranking.get(results.comparison.reference or "", {}).get(budget)
        if reference is not None:
            axes.axvline(reference.mean, **REFERENCE)
        title = [*textwrap.wrap(budget, 40), _compute([*rows.values()])]
        axes.set_title("\n".join(filter(None, title)), size=9)
        axes.set_xlabel(f"test {metric.label}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if metric.format == "percent":
            axes.xaxis.set_major_formatter(FuncFormatter(in_percent))
    panels[0].set_yticks(range(len(ranking)), [*ranking])
    panels[0].set_ylim(len(ranking) - 0.4, -0.6)
    _legend(figure, results)
    return figure


def _panel(axes: Axes, rows: dict[int, Outcome]) -> None:
    """Draw the scores of a budget, by row."""
    for i, outcome in rows.items():
        axes.plot(outcome.scores, [i] * len(outcome.scores), ".", color=COLOURS[0], ms=3, alpha=0.4)
        axes.errorbar(outcome.mean, i, xerr=outcome.deviation, **MARK)
    axes.tick_params(axis="y", length=0)


def _compute(outcomes: Sequence[Outcome]) -> str:
    """Return what the runs of a budget trained for, as a multiple of the dense training."""
    compute = [each.compute for each in outcomes if each.compute is not None]
    if not compute:
        return ""
    low, high = f"{min(compute):.2f}", f"{max(compute):.2f}"
    return f"{low if low == high else f'{low} to {high}'}× the dense training"


def _legend(figure: Figure, results: Results) -> None:
    handles = [Line2D([], [], **DENSE, label="dense model")]
    if results.comparison.reference is not None:
        handles.append(Line2D([], [], **REFERENCE, label=results.comparison.reference))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))

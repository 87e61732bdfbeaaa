"""Draw the cliff at α = 0: the blended model, the branch alone, and what is read of it, over α.

    python scripts/cliff_figure.py configs/compare/cliff_vgg7_16px.yaml

Scores are those of the validation, at the last epoch of each level; bands span the seeds. The share
of the branch in what layers read is that of the layer that has least; where both paths are of one
size it is 1 − α.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from comparison_figure import figure_of_comparison
from figure_parts import finish
from matplotlib.figure import Figure
from paper_tables import Line

from branchprune.errors import PruneError
from branchprune.experiments.compare.results import Results

COLOURS = ("#222222", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255")
PANELS = {
    "val": "blended model",
    "branch": "branch alone",
    "least_share": "least share of the branch",
}


def values_by_level(run: Line, key: str) -> dict[float, float]:
    """Return a value at the last epoch of each level of α.

    Args:
        run: A line of results.
        key: "val": the score of the blended model; "branch": that of the branch alone, which at
            α = 0 is the same; "least_share": its share where that is least, which α = 0 has not.
    """
    points = ({"branch": p["val"], **p} for p in run["curve"])
    return {round(p["alpha"], 6): p[key] for p in points if key in p}


def cliff(results: Results) -> Figure:
    """Draw a comparison in which every method blends.

    Args:
        results: At least one line.

    Raises:
        PruneError: A run did not blend.
    """
    figure = Figure((11.4, 3.8))
    panels = figure.subplots(1, 3)
    panels[1].sharey(panels[0])
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        for colour, outcome in zip(cycle(COLOURS), results.outcomes(), strict=False):
            curves = [values_by_level(run, key) for run in outcome.lines]
            xs, means, lows, highs = _spread(outcome.method, key, curves)
            axes.plot(xs, means, color=colour, marker="o", ms=2.5, label=outcome.method)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, lw=0)
        axes.set(title=title, xlabel="α")
        axes.invert_xaxis()
    dense = [run["val"]["dense"] for run in results.lines]
    for axes in panels[:2]:
        axes.axhline(sum(dense) / len(dense), color="#666666", lw=1, ls="--", label="dense model")
    panels[0].set(ylabel=f"validation {results.comparison.metric.label}")
    panels[2].plot([1, 0], [0, 1], color="#666666", lw=1, ls=":", label="paths of one size")
    finish(figure, panels, results.lines)
    return figure


def _spread(method: str, key: str, curves: Sequence[Mapping[float, float]]) -> list[list[float]]:
    """Return the levels of α, and mean, least and largest score at each."""
    levels = sorted({level for curve in curves for level in curve}, reverse=True)
    if not levels:
        raise PruneError(f"{method} has no {key} in its curves: it does not blend, or is too old")
    columns = [[curve[level] for curve in curves if level in curve] for level in levels]
    return [levels, *([f(x) for x in columns] for f in (lambda x: sum(x) / len(x), min, max))]


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    figure_of_comparison(cliff, __doc__, args)


if __name__ == "__main__":
    main()

"""Draw the cliff at α = 0: the blended model, the branch alone, and what is read of it, over α.

    python scripts/cliff_figure.py configs/compare/cliff_vgg7_16px.yaml
    python scripts/cliff_figure.py configs/compare/cliff_vgg7_16px.yaml --methods "weighted sum*"

Scores are those of the validation, at the last epoch of each level; bands span the seeds. The share
of the branch in what layers read is that of the layer that has least; where both paths are of one
size it is 1 − α.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product

from comparison_figure import figure_of_comparison
from figure_parts import finish
from matplotlib.figure import Figure
from paper_tables import Line

from branchprune.errors import PruneError
from branchprune.experiments.compare.results import Results

COLOURS = ("#222222", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255")
LOOKS = [*product((("-", "o"), ((0, (4, 1.5)), "s"), ((0, (1, 1)), "^")), COLOURS)]
"""Line, marker and colour of each method in turn."""
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
    outcomes = results.outcomes()
    figure = Figure((11.4, 3.6 + 0.05 * len(outcomes)))
    panels = figure.subplots(1, 3)
    panels[1].sharey(panels[0])
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        for ((line, marker), colour), outcome in zip(cycle(LOOKS), outcomes, strict=False):
            curves = [values_by_level(run, key) for run in outcome.lines]
            xs, means, lows, highs = _spread(outcome.method, key, curves)
            look = {"color": colour, "ls": line, "marker": marker, "ms": 3, "lw": 1.2}
            axes.plot(xs, means, **look, label=outcome.method)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, lw=0)
        axes.set(title=title, xlabel="α")
        axes.invert_xaxis()
    dense = [run["val"]["dense"] for run in results.lines]
    for axes in panels[:2]:
        axes.axhline(sum(dense) / len(dense), color="#666666", lw=1, ls="--", label="dense model")
    panels[0].set(ylabel=f"validation {results.comparison.metric.label}")
    panels[2].plot([1, 0], [0, 1], color="#666666", lw=1, ls=":", label="paths of one size")
    finish(figure, panels, results.lines, ncols=4)
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

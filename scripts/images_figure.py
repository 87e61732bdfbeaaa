"""Draw the score of a small model over the number of images that it was made with, by method.

    python scripts/images_figure.py configs/compare/few_images_16px.yaml

A budget "50 images" says how many there were; others are left out, and so are methods with a single
one. Scores are those of the test; bands are intervals of 95 % of the mean over the seeds, by
Student's t.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle

from comparison_figure import figure_of_comparison
from figure_parts import finish
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from branchprune.errors import PruneError
from branchprune.experiments.compare.paired import margin
from branchprune.experiments.compare.results import Outcome, Results

COLOURS = ("#222222", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def by_images(results: Results) -> dict[str, dict[int, Outcome]]:
    """Return the outcomes of each method with several numbers of images, by the number."""
    found: dict[str, dict[int, Outcome]] = {}
    for outcome in results.outcomes():
        count = re.fullmatch(r"(\d+) images", outcome.budget)
        if count:
            found.setdefault(outcome.method, {})[int(count[1])] = outcome
    return {
        method: dict(sorted(outcomes.items()))
        for method, outcomes in found.items()
        if len(outcomes) > 1
    }


def images(results: Results) -> Figure:
    """Draw a comparison whose budgets are numbers of images.

    Raises:
        PruneError: No method has several.
    """
    methods = by_images(results)
    if not methods:
        raise PruneError(f"{results.comparison.name} has no method with several numbers of images")
    figure = Figure((6.4, 4.2))
    axes = figure.subplots()
    for colour, (method, outcomes) in zip(cycle(COLOURS), methods.items(), strict=False):
        counts, means = [*outcomes], [each.mean for each in outcomes.values()]
        margins = [margin(each.scores) or 0.0 for each in outcomes.values()]
        axes.plot(counts, means, color=colour, marker="o", ms=3, label=method)
        lows, highs = (
            [m + sign * e for m, e in zip(means, margins, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(counts, lows, highs, color=colour, alpha=0.15, lw=0)
    axes.axhline(results.dense(), color="#666666", lw=1, ls="--", label="dense model")
    ticks = sorted({count for outcomes in methods.values() for count in outcomes})
    axes.set(xscale="log", xlabel="images", ylabel=f"test {results.comparison.metric.label}")
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    finish(figure, [axes], results.lines)
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    figure_of_comparison(images, __doc__, args)


if __name__ == "__main__":
    main()

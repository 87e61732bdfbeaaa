"""What the figures of the paper's experiments have in common: their data and their look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from paper_tables import VGG, Line, is_percent, newest, read_results, sections

INK, BLUE, RED, GREEN, PINK = "#222222", "#0077BB", "#CC3311", "#009E73", "#CC79A7"
PAPER = Path(__file__).parent / "results" / "paper.json"
STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.edgecolor": "#999999",
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 140,
}


class Missing(Exception):
    """What a figure needs is not there."""


@dataclass
class Data:
    """What the figures are made from.

    Attributes:
        preset: The preset of all runs.
        methods: Experiment → method → runs, one a seed.
        cost: What `branchprune cost` wrote, or None.
        runs: Folder of the runs, with a folder for each preset.
        frames: Folder of the frames.
    """

    preset: str
    methods: Mapping[str, Mapping[str, Sequence[Line]]]
    cost: Mapping[str, Any] | None
    runs: Path
    frames: Path

    def find(self, experiment: str, method: str) -> Sequence[Line]:
        """Return the runs of a method.

        Raises:
            Missing: There are none.
        """
        found = self.methods.get(experiment, {}).get(method)
        if not found:
            raise Missing(f"no results of {experiment}, {method!r}, preset {self.preset!r}")
        return found


def read(results: Path, preset: str, runs: Path, frames: Path) -> Data:
    """Read the results; of several data sets or kinds of hardware, that with the most runs."""
    methods: dict[str, dict[str, list[Line]]] = {}
    for section, lines in sorted(sections(read_results(results)).items(), key=lambda x: len(x[1])):
        if section.preset == preset:
            methods[section.experiment] = newest(lines)
    cost = results / "cost.json"
    found = json.loads(cost.read_text()) if cost.exists() else None
    return Data(preset, methods, found, runs, frames)


def look(i: int) -> dict[str, Any]:
    """Return the look of the first seed's line, which is bold, or of another's."""
    return {"lw": 1.8} if i == 0 else {"lw": 0.7, "alpha": 0.55}


def draw_dense(axes: Axes, runs: Sequence[Line]) -> None:
    """Draw the mean validation score of the dense models."""
    score = sum(run["val"]["dense"] for run in runs) / len(runs)
    axes.axhline(score, color=INK, lw=1, ls=(0, (6, 3)), label="dense model")


def paper_scores(method: str) -> tuple[float, float, float]:
    """Return what the paper reports of VGG-16: dense, final, and the parameters left.

    Returns:
        Test accuracies and parameters as fractions.
    """
    results = json.loads(PAPER.read_text())["results"]
    found = next(each for each in results if (each["experiment"], each["method"]) == (VGG, method))
    left = found.get("params_left", 100 - found.get("params_removed", 100))
    return found["dense"] / 100, found["final"] / 100, left / 100


def finish(figure: Figure, panels: Sequence[Axes], runs: Sequence[Line], **place: Any) -> None:
    """Format the scores, and put one legend above the panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    for axes in panels:
        if runs and is_percent(runs[0]):
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    settings: dict[str, Any] = {"ncols": 3, "alignment": "left"} | place
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", **settings)

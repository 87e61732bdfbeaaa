"""The plot of a sensitivity: the change of the output over the width, a line a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps, style
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from branchprune.reports.plot_style import STYLE
from branchprune.targets.sensitivity import Sensitivity
from branchprune.targets.target_plan import TargetPlan

LEAST = 1e-5
"""Below which a change of the output is not drawn."""
NAMED = 12
"""Groups that the legend names, the most needed first."""


def draw(found: Sensitivity, plans: Sequence[TargetPlan], path: Path) -> None:
    """Write a plot: of each group the change over its width, and of plans that over their MACs.

    Args:
        found: The sensitivity.
        plans: Plans for targets of multiply-adds, the trade-off; empty: it is left out.
        path: The file to write; its ending says of which kind.
    """
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(11 if plans else 6.5, 4.2), layout="constrained")
        axes = figure.subplots(1, 2 if plans else 1, squeeze=False)[0]
        groups = found.groups
        colours = colormaps["viridis"].resampled(max(2, len(groups)))
        for i, group in enumerate(groups):
            shares = [k / group.width for k in range(1, group.width)]
            name = group.name if i < NAMED else f"_{group.name}"
            axes[0].plot(shares, group.errors[1:-1], color=colours(i), lw=1.2, label=name)
            kept, changes = zip(*group.measured, strict=True) if group.measured else ((), ())
            axes[0].plot([k / group.width for k in kept], changes, "o", color=colours(i), ms=3)
        axes[0].set(
            yscale="log", xlabel="channels kept", ylabel="change of the output, this group alone"
        )
        axes[0].set_ylim(bottom=LEAST)
        axes[0].xaxis.set_major_formatter(PercentFormatter(1))
        axes[0].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        if plans:
            shares = [each.after.macs / each.before.macs for each in plans]
            axes[1].plot(shares, [each.change for each in plans], "o-", label="widths chosen")
            axes[1].plot(shares, [each.uniform for each in plans], "s--", label="one share of all")
            axes[1].set(
                yscale="log", xlabel="MACs left", ylabel="change of the output, before training"
            )
            axes[1].xaxis.set_major_formatter(PercentFormatter(1))
            axes[1].legend()
        for each in axes:
            each.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        figure.savefig(path)

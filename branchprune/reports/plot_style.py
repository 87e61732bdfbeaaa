"""What plots of comparisons, searches and sensitivities look like."""

from __future__ import annotations

from typing import Any

INK, MUTED = "#1f1f1f", "#666666"
COLOURS = (
    *("#1f77b4", "#d95f02", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#a6a021", "#17a2b8"),
)
"""Of methods, one after the other."""
STYLE = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.ymargin": 0.1,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}
DENSE: dict[str, Any] = {"color": INK, "lw": 1, "ls": (0, (6, 3)), "zorder": 1}
"""The line of the dense model."""


def in_percent(value: float, _: int | None = None) -> str:
    """Return a fraction in percent, as the ticks of an axis say it."""
    return f"{100 * value:.4g} %"

"""A comparison as files, from its results alone: table.md, table.csv and the plots."""

from __future__ import annotations

from pathlib import Path

from branchprune.experiments.compare.results import Results
from branchprune.experiments.files import refusals_named, write_whole
from branchprune.reports.comparison_plots import draw
from branchprune.reports.comparison_table import csv_text, markdown


def write_comparison(results: Results, folder: Path) -> tuple[str, list[Path]]:
    """Write table.md, table.csv and the plots of a comparison.

    Args:
        results: At least one line.
        folder: Where to write; made if it does not exist.

    Returns:
        The table as Markdown, and the paths of the plots.

    Raises:
        PruneError: A file cannot be written; it is named.
    """
    with refusals_named():
        folder.mkdir(parents=True, exist_ok=True)
        table = markdown(results)
        write_whole(folder / "table.md", table)
        write_whole(folder / "table.csv", csv_text(results))
        return table, draw(results, folder)

"""Draw the test scores of a comparison: a row a method, a panel a budget.

    python scripts/comparison_figure.py configs/methods.yaml --variant digits

The command line is that of other figures, too, which are drawn from the results of a comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from figure_parts import STYLE
from matplotlib import style
from matplotlib.figure import Figure

from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.experiments.compare.results import Results
from branchprune.reports.comparison_by_method import by_method

ROOT = Path(__file__).resolve().parents[1]


def figure_of_comparison(
    draw: Callable[[Results], Figure], description: str, args: Sequence[str] | None
) -> None:
    """Parse the command line, draw, and print where the figure is.

    Args:
        draw: Draws at least one line of results.
        description: What the script says of itself; the first line counts.
        args: The command line; None: that of the program.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="of all runs; repeatable")
    parser.add_argument("--results", type=Path, help="default: scripts/results/compare/NAME.jsonl")
    parser.add_argument("--methods", nargs="+", default=["*"], help="patterns; default: all")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output", type=Path, help="default: runs/figures/NAME.png")
    output.add_argument("--record", action="store_true", help="write to scripts/figures/NAME.png")
    options = parser.parse_args(args)
    comparison = compare_config.read(options.config, options.variant)
    source = options.results or ROOT / "scripts/results/compare" / f"{comparison.name}.jsonl"
    results = compare_results.read(comparison, source)
    chosen = options.methods
    results = results.only(lambda line: any(fnmatchcase(line["method"], each) for each in chosen))
    if not results.lines:
        raise SystemExit(f"no results of {comparison.name} in {source}")
    folder = ROOT / ("scripts" if options.record else "runs") / "figures"
    path = options.output or folder / f"{comparison.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with style.context(["default", STYLE]):
        draw(results).savefig(path, metadata={"Software": None})
    print(path)


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    figure_of_comparison(by_method, __doc__, args)


if __name__ == "__main__":
    main()

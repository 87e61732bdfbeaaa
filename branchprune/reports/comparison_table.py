"""The table of a comparison, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchprune.experiments.compare.paired import Difference, differences
from branchprune.experiments.compare.results import Outcome, Results, todays_command
from branchprune.experiments.markdown import NOTHING, commands, distinct, markdown_table
from branchprune.experiments.run.settings import MetricConfig


def markdown(results: Results, root: Path | None = None) -> str:
    """Return the table with what is missing, the conditions and the commands.

    Args:
        results: At least one line.
        root: The folder that commands run in; None: the current one.
    """
    comparison, ranking = results.comparison, results.ranking()
    metric, unit = comparison.metric, _unit(comparison.metric)
    header = ["method"]
    paired = [f"validation against {comparison.reference}"] if comparison.reference else []
    for budget in results.budgets:
        names = [f"{metric.label}{unit} (n)", *paired, "compute"]
        header += [f"{budget}: {name}" for name in names]
    rows = [[method, *_cells(results, found), _removed(found)] for method, found in ranking.items()]
    dense = number(results.dense(), metric, _digits(results))
    compute = "1.00×" if results.dense_macs else NOTHING
    cells = [dense, *[NOTHING] * len(paired), compute]
    rows.append(["dense model", *cells * len(results.budgets), NOTHING])
    header.append("parameters / MACs removed, %")
    parts = [
        f"**{comparison.name}, {results.lines[0]['dataset']}**",
        markdown_table([header, *rows]),
        _notes(results),
        *_missing(results),
        conditions(results.lines),
        _commands(results, root or Path.cwd()),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(results: Results) -> str:
    """Return a row a method and budget, unrounded, and a row of the dense model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("mean", "deviation", "compute", "train_macs", "params_removed", "macs_removed")
    writer.writerow(["method", "budget", "n", "seeds", *names])
    for found in results.ranking().values():
        for budget, each in found.items():
            seeds = " ".join(str(line["seed"]) for line in each.lines)
            averages = [each.average(name) for name in names[3:]]
            spent = [each.mean, each.deviation, each.compute, *averages]
            writer.writerow([each.method, budget, len(each.lines), seeds, *spent])
    macs = results.dense_macs
    compute = 1.0 if macs else None
    writer.writerow(["dense model", None, None, None, results.dense(), None, compute, macs, 0, 0])
    return text.getvalue()


def number(value: float, metric: MetricConfig, digits: int) -> str:
    """Return a score as tables show it: of a fraction, percent without the sign."""
    return f"{100 * value if metric.format == 'percent' else value:.{digits}f}".replace("-", "−")


def _cells(results: Results, found: Mapping[str, Outcome]) -> list[str]:
    """Return score, difference to the reference, if there is one, and compute at each budget."""
    metric, digits, cells = results.comparison.metric, _digits(results), []
    paired = differences(results)
    for budget in results.budgets:
        each = found.get(budget)
        if each is None:
            cells += [NOTHING] * (3 if results.comparison.reference else 2)
            continue
        difference = [_signed(paired.get((each.method, budget)), metric, digits)]
        spread = "" if each.deviation is None else f" ± {number(each.deviation, metric, digits)}"
        cells += [f"{number(each.mean, metric, digits)}{spread} ({len(each.lines)})"]
        cells += difference if results.comparison.reference else []
        absolute = f"{each.average('train_macs'):.3g}"
        cells.append(absolute if each.compute is None else f"{each.compute:.2f}×")
    return cells


def _signed(difference: Difference | None, metric: MetricConfig, digits: int) -> str:
    """Return a difference with its sign, and the margin of its interval."""
    if difference is None:
        return NOTHING
    text = number(difference.mean, metric, digits)
    margin = difference.margin
    spread = "" if margin is None else f" ± {number(margin, metric, digits)}"
    return ("" if text.startswith("−") else "+") + text + spread


def _digits(results: Results) -> int:
    """Return the digits that scores are shown with: two in percent, else four in all."""
    largest = max((abs(x["final"]) for x in results.lines if math.isfinite(x["final"])), default=0)
    if results.comparison.metric.format == "percent" or not largest:
        return 2
    return max(0, 3 - math.floor(math.log10(largest)))


def _removed(found: Mapping[str, Outcome]) -> str:
    """Return what was removed; where budgets differ in it, of each."""
    shown = [
        " / ".join(f"{100 * each.average(f'{key}_removed'):.1f}" for key in ("params", "macs"))
        for each in found.values()
    ]
    return "; ".join(dict.fromkeys(shown)).replace("-", "−")


def _unit(metric: MetricConfig) -> str:
    return ", %" if metric.format == "percent" else ""


def _notes(results: Results) -> str:
    macs = results.dense_macs
    dense = ""
    if macs:
        epochs = results.trained["record"]["epochs"]
        dense = f", as a multiple of the dense training's: {macs:.3g} in {epochs} epochs"
    note = (
        "Test scores of the small models: mean ± sample standard deviation of n seeds; the best at "
        "the last budget first. *Compute*: multiply-adds of all training steps behind the dense "
        f"training, those of a teacher included{dense}. "
        "What a criterion sees of the data and least squares are not in it, nor in the budgets: a "
        "few epochs of the small model."
    )
    if results.comparison.reference:
        note += (
            f" *Validation against {results.comparison.reference}*: mean difference of the "
            "validation scores, seed by seed, and its interval of 95 % by Student's t."
        )
    others = f" {results.others} more lines are of runs that the configuration does not name."
    return note + (others if results.others else "")


def _missing(results: Results) -> list[str]:
    """Return a paragraph on the runs without a line, if there are any."""
    begun = results.budgets
    whole = [budget for budget in results.comparison.budgets if budget not in begun]
    seeds: dict[tuple[str, str], list[str]] = {}
    for run in results.missing():
        if run.budget in begun:
            seeds.setdefault((run.budget, run.method), []).append(str(run.seed))
    methods: dict[tuple[str, str], list[str]] = {}
    for (budget, method), some in seeds.items():
        methods.setdefault((budget, ", ".join(some)), []).append(method)
    found = [f"{', '.join(whole)}: all"] if whole else []
    found += [
        f"{budget}, seeds {some}: {', '.join(names)}"
        if len(names) < len(results.comparison.methods)
        else f"{budget}, seeds {some}: all"
        for (budget, some), names in methods.items()
    ]
    return [f"Missing: {'; '.join(found)}."] if found else []


def conditions(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return hardware, versions, commits and the largest error of a collapse.

    Args:
        lines: Lines of results.
    """
    packages = sorted({name for line in lines for name in line["versions"]})
    versions = [f"{name} {distinct(x['versions'].get(name) for x in lines)}" for name in packages]
    error = max(line["collapse_error"] or 0 for line in lines)
    return (
        f"{distinct(line['hardware'] for line in lines)}; {', '.join(versions)}; commit "
        f"{distinct(line['commit'] for line in lines)}; largest relative error of a collapse "
        f"{error:.1e}."
    )


def _commands(results: Results, root: Path) -> str:
    """Return the command of each method and budget, for its first seed, folded away."""
    comparison = results.comparison
    runs: list[tuple[str, Mapping[str, Any], str]] = []
    if "command" in results.trained:
        runs.append(("dense model", results.trained, shlex.join(comparison.command(root))))
    for method, found in results.ranking().items():
        for budget, each in found.items():
            first = each.lines[0]
            today = todays_command(comparison, first, root)
            runs.append((f"{method}, {budget}, seed {first['seed']}", first, today))
    return commands(runs)

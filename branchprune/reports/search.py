"""A search as files: search.md with the table of its trials, and search.png."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from branchprune.experiments.files import refusals_named, write_whole
from branchprune.experiments.markdown import NOTHING, markdown_table
from branchprune.experiments.search.config import Value
from branchprune.experiments.search.results import Searched, Trial
from branchprune.reports.plot_style import COLOURS, MUTED, STYLE


def write_search(searched: Searched, folder: Path) -> str:
    """Write search.md and, if a trial has ended, search.png; return the text of the first.

    Args:
        searched: What a search has found.
        folder: Where to write; it exists.

    Raises:
        PruneError: A file cannot be written; it is named.
    """
    text = markdown(searched)
    with refusals_named():
        write_whole(folder / "search.md", text)
        if any(trial.score is not None for trial in searched.trials):
            with style.context(["default", STYLE]):
                figure(searched).savefig(folder / "search.png")
    return text


def markdown(searched: Searched) -> str:
    """Return the table of all trials, the best first, what they cost, and the best's command."""
    keys = list(dict.fromkeys(key for each in searched.trials for key in each.settings))
    unit = ", %" if searched.metric.format == "percent" else ""
    header = ["trial", *keys, f"validation {searched.metric.label}{unit}"]
    header += ["MACs left, %", "parameters left, %", "training multiply-adds"]
    rows = [
        [
            f"{trial.number:03}",
            *(_setting(trial.settings[key]) for key in keys),
            _result(trial, searched),
            *map(_percent, (trial.macs, trial.params)),
            _cost(trial.train_macs, searched),
        ]
        for trial in searched.ranked()
    ]
    title = f"**{searched.name}, a search**"
    parts = [title, markdown_table([header, *rows]), _costs(searched), *_best(searched)]
    return "\n\n".join(parts) + "\n"


def _setting(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _score(value: float, searched: Searched) -> str:
    shown = f"{100 * value:.2f}" if searched.metric.format == "percent" else f"{value:.4g}"
    return shown.replace("-", "−")


def _result(trial: Trial, searched: Searched) -> str:
    if trial.score is None:
        return f"{trial.state} after {trial.epochs} epochs"
    score = _score(trial.score, searched)
    if trial.state == "too large":
        return f"{score} (too large)"
    return f"**{score}**" if trial == searched.best else score


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _cost(macs: float, searched: Searched) -> str:
    dense = searched.dense_macs
    return f"{macs:.3g}" + (f" ({macs / dense:.2f}×)" if dense else "")


def _costs(searched: Searched) -> str:
    counts = Counter(trial.state for trial in searched.trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    lost = sum(trial.train_macs for trial in searched.trials if trial.score is None)
    text = (
        f"{len(searched.trials)} of {searched.wanted} trials: {states or 'none'}. In all they took "
        f"{_cost(searched.train_macs, searched)} multiply-adds of training"
    )
    if lost:
        text += f", of which {_cost(lost, searched)} are of trials that have not ended, to their "
        text += "last whole epoch"
    text += "."
    if searched.dense_macs:
        text += f" ×: as a multiple of the dense training's, {searched.dense_macs:.3g}."
    if searched.max_macs is not None:
        text += f" Too large: more than {100 * searched.max_macs:g} % of the MACs are left."
    return text


def _best(searched: Searched) -> list[str]:
    best = searched.best
    if best is None or best.score is None:
        return ["No trial has ended that is not too large."]
    test = "" if searched.test is None else f", test {_score(searched.test, searched)}"
    return [
        f"Best: trial {best.number:03}, validation {_score(best.score, searched)}{test}. It was "
        "chosen by the validation alone, and no other test score is shown. Again:",
        f"```sh\n{searched.command}\n```",
    ]


def figure(searched: Searched) -> Figure:
    """Return a plot of scores over the MACs left, and of the trials that no other outdoes."""
    found = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = found.subplots()
    for state, face in (("done", MUTED), ("too large", "none")):
        marks = [(each.macs, each.score) for each in searched.trials if each.state == state]
        places = [*zip(*marks, strict=True)] or [(), ()]
        axes.plot(*places, "o", ms=4, color=MUTED, mfc=face)
    front = [*zip(*((each.macs, each.score) for each in searched.front()), strict=True)]
    axes.plot(*front, "s-", ms=7, mfc="none", color=COLOURS[0], label="Pareto front")
    if searched.max_macs is not None:
        axes.axvline(searched.max_macs, color=MUTED, ls=":", label="most that is allowed")
    axes.set(xlabel="MACs left", ylabel=f"validation {searched.metric.label}")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if searched.metric.format == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return found

"""The tables of the paper's experiments as Markdown, from lines of results.

What may not be mixed stands apart: presets, data sets, and runs on a CPU and on a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from branchprune.experiments.files import read_lines
from branchprune.experiments.markdown import NOTHING, commands, markdown_table
from branchprune.reports.comparison_table import conditions

Line = Mapping[str, Any]
Paper = Mapping[str, Any]
Today = Callable[[Line], str]
"""Tells the command that makes the run of a line today."""

VGG, AUTOENCODER = "vgg16_cifar10", "autoencoder_carla"
FILES = (f"{VGG}.jsonl", f"{AUTOENCODER}.jsonl")
METHODS = (
    *("blended", "one after the other", "at once", "three-stage", "ours"),
    *("early stopping", "multiplicative", "noise", "regression", "frozen", "frozen until small"),
    *("weight decay", "larger steps", "straight to small"),
)
TITLES = {VGG: "VGG-16", AUTOENCODER: "Autoencoder"}
NAMES = {"blended": "blended (the paper's)", "three-stage": "three-stage L1 pruning"}
SCORES = {AUTOENCODER: (("SSIM", "metric/test_ssim"), ("loss (L1 + 1 − SSIM)", "loss/test"))}
"""Further test scores of an experiment: title and name in the log."""

OTHER = "Not the setting of the paper, whose numbers do not compare with these."


class Section(NamedTuple):
    """What the runs of one table have in common."""

    preset: str
    experiment: str
    dataset: str
    kind: str


def read_results(folder: Path) -> list[Line]:
    """Return the lines of all experiments that have a file in a folder."""
    return [
        line for name in FILES if (folder / name).exists() for line in read_lines(folder / name)
    ]


def section_of(line: Line) -> Section:
    """Return where a line belongs; `kind` is the GPU's name, or CPU."""
    hardware: str = line["hardware"]
    kind = hardware.split(";")[0] if ";" in hardware else "CPU"
    return Section(line["preset"], line["experiment"], line["dataset"], kind)


def sections(lines: Iterable[Line]) -> dict[Section, list[Line]]:
    """Return the lines of each table, oldest first; the paper's preset and experiment first."""
    found: dict[Section, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["date"]):
        found.setdefault(section_of(line), []).append(line)

    def place(key: Section) -> tuple[bool, str, bool, Section]:
        return key.preset != "paper", key.preset, key.experiment != VGG, key

    return {key: found[key] for key in sorted(found, key=place)}


def newest(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the newest line of each seed, by method: methods and seeds in their order.

    Args:
        lines: The lines of one section, oldest first.
    """
    last = {(line["method"], line["seed"]): line for line in lines}
    names = {method for method, _ in last}
    known = [method for method in METHODS if method in names]
    return {
        method: [last[key] for key in sorted(last) if key[0] == method]
        for method in [*known, *sorted(names - {*METHODS})]
    }


def is_percent(line: Line) -> bool:
    """Return whether the metric is a fraction, which is shown in percent."""
    return bool(line["metric"] == "accuracy")


def spread(values: Sequence[float | None], digits: int, sign: str = "") -> str:
    """Return mean ± sample standard deviation; the mean alone of one value, – without any."""
    there = [value for value in values if value is not None]
    if not there:
        return NOTHING
    mean = f"{statistics.fmean(there):{sign}.{digits}f}".replace("-", "−")
    return f"{mean} ± {statistics.stdev(there):.{digits}f}" if len(there) > 1 else mean


def relative_compute(line: Line, section: Iterable[Line]) -> float | None:
    """Return the multiply-adds of pruning over those of the dense training of the same seed.

    Args:
        line: The run.
        section: All lines of its section, oldest first; a run that started from the dense model of
            another has none of its own, and those of the newest run that trained it count.
    """
    spent = [each["dense_train_macs"] for each in section if each["seed"] == line["seed"]]
    dense = line["dense_train_macs"] or next((macs for macs in reversed(spent) if macs), 0)
    return line["train_macs"] / dense if dense else None


def cliff(line: Line) -> tuple[float | None, float | None]:
    """Return the branch alone in the last epoch before every α was 0, and in the first after."""
    points = line["curve"]
    zero = next((i for i, point in enumerate(points) if point["alpha"] == 0), 0)
    if not zero:
        return None, None
    return points[zero - 1].get("branch"), points[zero].get("branch")


def pruning_epochs(line: Line) -> float:
    """Return the epochs of all stages but the dense training."""
    return float(sum(epochs for stage, epochs in line["epochs"].items() if stage != "dense"))


def further_score(name: str, lines: Sequence[Line]) -> str:
    """Return a further test score, dense → final; – unless all of the lines have it."""
    found = [
        [line.get("test", {}).get(side, {}).get(name) for line in lines]
        for side in ("dense", "small")
    ]
    if any(value is None for values in found for value in values):
        return NOTHING
    return " → ".join(spread(values, 3) for values in found)


def paper_value(paper: Paper, experiment: str, method: str) -> str:
    """Return what the paper itself reports, with the digits that it gives."""
    for found in paper["results"]:
        if (found["experiment"], found["method"]) == (experiment, method):
            if "validation_loss" in found:
                return f"validation loss {found['validation_loss']:.2f} → {NOTHING}"
            about = "≈ " if found["approximate"] else ""
            params = found.get("params_removed", 100 - found.get("params_left", 0))
            removed = f"{NOTHING} / {about}{params} / {found.get('macs_removed', NOTHING)}"
            return f"{found['dense']} → {about}{found['final']} ({removed})"
    return NOTHING


def method_row(method: str, lines: Sequence[Line], section: Sequence[Line]) -> list[str]:
    """Return the cells of a method, without the paper's own values.

    Args:
        method: Its name.
        lines: Its runs, one a seed.
        section: All lines of the section, oldest first.
    """
    scale = 100 if is_percent(lines[0]) else 1
    values = {key: [scale * line[key] for line in lines] for key in ("dense", "final")}
    change = [
        after - before for before, after in zip(values["dense"], values["final"], strict=True)
    ]
    removed = [
        spread([statistics.fmean(100 * line[f"{key}_removed"] for line in lines)], 1)
        for key in ("channels", "params", "macs")
    ]
    before, after = (
        spread([None if value is None else scale * value for value in side], 1)
        for side in zip(*map(cliff, lines), strict=True)
    )
    return [
        NAMES.get(method, method),
        str(len(lines)),
        *(spread(values[key], 2) for key in ("dense", "final")),
        spread(change, 2, "+"),
        " / ".join(removed),
        spread([pruning_epochs(line) for line in lines], 0),
        spread([relative_compute(line, section) for line in lines], 2),
        NOTHING if NOTHING in (before, after) else f"{before} → {after}",
        *(further_score(name, lines) for _, name in SCORES.get(lines[0]["experiment"], ())),
    ]


def section_table(section: Section, lines: Sequence[Line], paper: Paper, today: Today) -> str:
    """Return a section: title, table, what it was obtained with, commands."""
    methods = newest(lines)
    shown = [line for runs in methods.values() for line in runs]
    rows = [header(section, shown[0])]
    rows += [method_row(method, runs, lines) for method, runs in methods.items()]
    theirs = [paper_value(paper, section.experiment, method) for method in methods]
    if {*theirs} != {NOTHING}:
        removed = " (removed), %" if is_percent(shown[0]) else ""
        column = [f"the paper: dense → final{removed}", *theirs]
        rows = [[*row, cell] for row, cell in zip(rows, column, strict=True)]
    name = TITLES.get(section.experiment, section.experiment)
    title = f"**{name}, {section.dataset}, preset `{section.preset}`, on {_place(section.kind)}**"
    parts = [
        title,
        *([] if section.preset == "paper" else [OTHER]),
        markdown_table(rows),
        f"Test {shown[0]['metric']}; {conditions(shown)}",
        commands(
            (f"{method}, seed {runs[0]['seed']}", runs[0], today(runs[0]))
            for method, runs in methods.items()
        ),
    ]
    return "\n\n".join(parts)


def header(section: Section, line: Line) -> list[str]:
    """Return the header of a section's table, without the paper's own values."""
    unit = "%" if is_percent(line) else line["metric"].split(" in ")[-1]
    return [
        *("method", "n", f"dense, {unit}", f"final, {unit}"),
        f"change, {unit.replace('%', 'points')}",
        *("channels / parameters / MACs removed, %", "epochs", "compute"),
        f"branch alone before → at α = 0, {unit}",
        *(title for title, _ in SCORES.get(section.experiment, ())),
    ]


def _place(kind: str) -> str:
    return "a CPU" if kind == "CPU" else f"one {kind}"


def paper_table(lines: Sequence[Line], paper: Paper, today: Today) -> str:
    """Return the tables of all presets and experiments that have lines.

    Args:
        lines: Lines of results.
        paper: The paper's own values, as in `scripts/results/paper.json`.
        today: Tells the command that makes the run of a line today.
    """
    tables = [
        section_table(section, found, paper, today) for section, found in sections(lines).items()
    ]
    notes = (
        "Means ± sample standard deviation over n seeds; *change* is within a seed. *Epochs* and "
        "*compute* (multiply-adds, as a multiple of those of the dense training) are those of "
        "pruning. *Branch alone* is in validation, in the last epoch before every α is 0 and the "
        "first after. SSIM and loss are dense → final, in the test; which weights the paper's loss "
        f"gives its two terms is not known. The paper: {paper['source']}."
    )
    return "\n\n".join([*tables, notes])

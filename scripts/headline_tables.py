"""The small tables of README.md: what pruning comes to, what it covers, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paper_tables import AUTOENCODER, VGG, Line

from branchprune.benchmarks.zoo_table import Row
from branchprune.experiments.compare.results import Outcome, Results
from branchprune.experiments.markdown import markdown_table
from branchprune.reports.comparison_table import number

Comparisons = Mapping[str, Results]


class Headline(NamedTuple):
    """A row of the first table: what it is called, and which runs it shows."""

    what: str
    comparison: str
    method: str
    budget: str


TITLES = {
    "vgg7_16px": "VGG of 7 convolutions, CIFAR-10 at 16×16, accuracy in %",
    "autoencoder_carla_cpu": "RGB autoencoder, CARLA frames, PSNR in dB",
}
HEADLINES = (
    Headline(
        "recipe: filters cut at once, then Muon, mixup and a teacher",
        *("vgg7_16px", "reconstruction, recipe", "half the dense training"),
    ),
    Headline("the same, less training", *("vgg7_16px", "reconstruction, recipe", "equal compute")),
    Headline(
        "Torch-Pruning's filters, the same training",
        *("vgg7_16px", "Torch-Pruning, magnitude, recipe", "equal compute"),
    ),
    Headline(
        "Torch-Pruning's filters, SGD and a teacher",
        *("vgg7_16px", "Torch-Pruning, magnitude, distilled", "equal compute"),
    ),
    Headline(
        "blended by drawing a path, SGD and a teacher",
        *("vgg7_16px", "branches drawn by group, distilled", "equal epochs"),
    ),
    Headline(
        "blended by a weighted sum, as in the paper, SGD and a teacher",
        *("vgg7_16px", "branches, distilled", "equal epochs"),
    ),
    Headline(
        "linear maps kept until the end, Muon",
        *("autoencoder_carla_cpu", "over-parameterised, Muon", "equal compute"),
    ),
    Headline(
        "filters cut at once by L1 norm, Muon",
        *("autoencoder_carla_cpu", "L1 + fine-tuning, Muon", "equal compute"),
    ),
    Headline(
        "blended by a weighted sum, as in the paper",
        *("autoencoder_carla_cpu", "branches", "equal compute"),
    ),
)


def headlines(comparisons: Comparisons, bench: Mapping[str, Any]) -> str:
    """Return what the most important runs came to, and what the small model saves in time.

    Args:
        comparisons: Results by the name of the comparison.
        bench: What `branchprune bench` writes.
    """
    parts = []
    for name, title in TITLES.items():
        results = comparisons[name]
        outcomes, dense = results.ranking(), number(results.dense(), results.comparison.metric, 2)
        rows = [
            [row.what, *_cells(results, outcomes[row.method][row.budget])]
            for row in HEADLINES
            if row.comparison == name
        ]
        header = [f"{title}; dense: {dense}", "small (runs)", "parameters / MACs left", "training"]
        parts.append(markdown_table([header, *rows]))
    faster = next(r for r in bench["rows"] if r["what"] == "dense / collapsed, inference")
    hardware = {line["hardware"] for results in comparisons.values() for line in results.lines}
    parts.append(
        "Test scores, mean ± standard deviation over runs with different seeds; *training*: its "
        "multiply-adds, as a part of those of the dense training; "
        f"{' and '.join(sorted(hardware))}. VGG-16 with the paper's widths, collapsed, is "
        f"{faster['value']:.1f} times as fast as the dense one (batch "
        f"{bench['options']['batch_size']}, {bench['hardware']})."
    )
    return "\n\n".join(parts)


def _cells(results: Results, found: Outcome) -> list[str]:
    metric = results.comparison.metric
    spread = "" if found.deviation is None else f" ± {number(found.deviation, metric, 2)}"
    left = (f"{100 - 100 * found.average(f'{key}_removed'):.0f} %" for key in ("params", "macs"))
    assert found.compute is not None
    return [
        f"{number(found.mean, metric, 2)}{spread} ({len(found.lines)})",
        " / ".join(left),
        f"{100 * found.compute:.0f} %",
    ]


def coverage(rows: Sequence[Row]) -> str:
    """Return how many models of the coverage table are exact, in a sentence.

    Args:
        rows: The rows of `zoo.csv`.
    """
    exact = [row for row in rows if row.exact]
    error = max(row.collapse_error or 0.0 for row in exact)
    return (
        f"{len(exact)} of {len(rows)} models of {rows[0].library} are planned, blended and "
        f"collapsed with nothing set by hand; the largest relative error of a collapse is "
        f"{error:.1e}, in float64."
    )


class Reproduced(NamedTuple):
    """An experiment of the paper: what it is, the command, and which lines tell its time."""

    what: str
    command: str
    experiment: str
    method: str
    preset: str


CONFIGS = f"branchprune run configs/{VGG}.yaml", f"branchprune run configs/{AUTOENCODER}.yaml"
FRAMES = "--data.init_args.root FRAMES"
REPRODUCED = (
    Reproduced("VGG-16, blended", CONFIGS[0], VGG, "blended", "paper"),
    Reproduced("… for two cores", f"{CONFIGS[0]} --variant cpu", VGG, "blended", "cpu"),
    Reproduced(
        "RGB autoencoder", f"{CONFIGS[1]} {FRAMES}", AUTOENCODER, "one after the other", "paper"
    ),
    Reproduced(
        "… for two cores",
        f"{CONFIGS[1]} --variant cpu {FRAMES}",
        *(AUTOENCODER, "one after the other", "cpu"),
    ),
)


def reproduction(lines: Sequence[Line]) -> str:
    """Return the commands of the paper's experiments, with the time that each took.

    Args:
        lines: The lines of results of the paper's experiments.
    """
    rows = [["experiment", "command", "time"]]
    for each in REPRODUCED:
        known = each.experiment, each.method, each.preset
        runs = [x for x in lines if (x["experiment"], x["method"], x["preset"]) == known]
        rows.append([each.what, f"`{each.command}`", duration(runs)])
    return markdown_table(rows, "lll")


def duration(lines: Sequence[Line]) -> str:
    """Return how long runs took, training alone, and on what."""
    minutes = sorted(sum(line["seconds"].values()) / 60 for line in lines)
    if not minutes:
        return "not measured"
    least, most = f"{minutes[0]:.0f}", f"{minutes[-1]:.0f}"
    span = most if least == most else f"{least} to {most}"
    return f"{span} minutes ({' and '.join(sorted({x['hardware'] for x in lines}))})"

"""The small tables of README.md: what pruning comes to, what it covers, how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config_table import duration, entries

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
        "linear ends kept until the end, Muon",
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
        score = "score of the small model (runs)"
        header = [f"{title}; dense: {dense}", score, "parameters / MACs left", "training"]
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


def coverage(libraries: Sequence[Sequence[Row]]) -> str:
    """Return how many models of the coverage tables are exact, in two sentences.

    Args:
        libraries: The rows of the tables, one a library.
    """
    exact = [[row for row in rows if row.exact] for rows in libraries]
    counts = [
        f"{len(found)} of {len(rows)} models of {rows[0].library}"
        for found, rows in zip(exact, libraries, strict=True)
    ]
    error = max(row.collapse_error or 0.0 for found in exact for row in found)
    stay = [f"{_mean_share(rows):.1%} in {rows[0].library}" for rows in exact if _mean_share(rows)]
    return (
        f"{', '.join(counts)} are planned, blended and collapsed with nothing set by hand; the "
        f"largest relative error of a collapse is {error:.1e}, in float64. Of the parameters stay, "
        f"whatever widths are chosen, on average {', '.join(stay) or 'an unknown share'}."
    )


def _mean_share(rows: Sequence[Row]) -> float:
    """Return the mean share of parameters that stay; 0 where it was not measured."""
    shares = [row.share_that_stays for row in rows if row.share_that_stays is not None]
    return statistics.mean(shares) if shares else 0.0


FRAMES = "--data.init_args.root FRAMES"
REPRODUCED = (
    ("VGG-16 on CIFAR-10, blended", "branchprune run configs/vgg16_cifar10.yaml", ""),
    ("… for two cores", "branchprune run configs/vgg16_cifar10.yaml --variant cpu", ""),
    ("RGB autoencoder on CARLA", "branchprune run configs/autoencoder_carla.yaml", FRAMES),
    ("… for two cores", "branchprune run configs/autoencoder_carla.yaml --variant cpu", FRAMES),
)
"""The paper's experiments: what each is, its command, and options that say where data are."""


def reproduction() -> str:
    """Return the commands of the paper's experiments, with the time that each took."""
    times = {entry.command: duration(entry) for entry in entries()}
    rows = [
        [what, f"`{command} {options}`".replace(" `", "`"), times[command]]
        for what, command, options in REPRODUCED
    ]
    return markdown_table([["experiment", "command", "time on two cores"], *rows], "lll")

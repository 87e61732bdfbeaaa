"""Write the tables of README.md and of scripts/results from committed result files.

    python scripts/readme_tables.py

A table stands between its two marker comments; what is around them is written by hand. With
`--check` nothing is written, and the exit status says whether every page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import depth_latency
from config_table import compares
from export_tables import exports_table, trained_table
from headline_tables import Comparisons, coverage, headlines, reproduction
from marked_tables import fill
from measurement_tables import bench_table, cost_table, plan_speed_table
from method_tables import beside_table, depth_table, sources_table
from method_tables import cost_table as criteria_table
from paper_tables import FILES, paper_table, read_results
from reproduce import todays_command
from target_tables import additivity_table, latency_table, layer_latency_table, reach_table
from torture_table import table as torture_table
from yolo_table import table as yolo_table

from branchprune.benchmarks.zoo_table import markdown_summary, read_csv
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.experiments.files import read_lines
from branchprune.reports import comparison_table as compare_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"
COMPARISONS = (
    *("vgg7_16px", "ablations_vgg7_16px", "cliff_vgg7_16px", "autoencoder_carla_cpu"),
    *("few_images_16px", "few_images_forms", "cliff_norms_16px", "widths_16px"),
    *("methods", "depth_16px"),
)
"""Comparisons that have a page, as configs/ names them."""
NETWORKS = {
    "few_images_networks": ("resnet20", "resnet56", "mobilenet", "carla"),
    "widths_16px": ("resnet56", "mobilenet"),
    "depth_16px": ("mobilenet",),
    "methods": ("digits",),
}
"""Variants with a table of their own on the page of a comparison, by its name."""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        files: What it is made from, in the folder of results; without any of them it stays.
        make: Makes it from that folder.
    """

    files: tuple[str, ...]
    make: Callable[[Path], str]


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def comparison(folder: Path, name: str) -> compare_results.Results:
    """Return the results of a comparison, NAME or NAME+VARIANT."""
    file, *variants = name.split("+")
    [path] = [each for each in (ROOT / "configs").rglob(f"{file}.yaml") if compares(each)]
    read = compare_config.read(path, variants)
    return compare_results.read(read, folder / "compare" / f"{name}.jsonl")


def comparisons(folder: Path) -> Comparisons:
    """Return the results of all comparisons that have a page."""
    return {name: comparison(folder, name) for name in COMPARISONS}


def comparison_table(name: str, folder: Path) -> str:
    """Return the table of a comparison."""
    return compare_table.markdown(comparison(folder, name), ROOT).rstrip()


def table_of(make: Callable[[Any], str], file: str, folder: Path) -> str:
    """Return the table of a result that is one JSON file."""
    return make(_json(folder / f"{file}.json"))


def _lines(name: str) -> str:
    return f"compare/{name}.jsonl"


ZOO = (
    "zoo.csv",
    "zoo_timm.csv",
    "zoo_segmentation_models_pytorch.csv",
    "zoo_ultralytics.csv",
)
PAGES: dict[str, dict[str, Table]] = {
    "README.md": {
        "headlines": Table(
            tuple(map(_lines, COMPARISONS)),
            lambda folder: headlines(comparisons(folder), _json(folder / "bench.json")),
        ),
        "coverage": Table(ZOO, lambda folder: coverage([read_csv(folder / name) for name in ZOO])),
        "reproduction": Table(FILES, lambda folder: reproduction()),
    },
    "scripts/results/README.md": {
        "zoo": Table(("zoo.csv",), lambda folder: markdown_summary(read_csv(folder / "zoo.csv"))),
    },
    "scripts/results/paper.md": {
        "paper": Table(
            FILES,
            lambda folder: paper_table(
                read_results(folder), _json(folder / "paper.json"), todays_command
            ),
        ),
    },
    "scripts/results/cost.md": {
        "cost": Table(
            ("cost.json",),
            lambda folder: cost_table(_json(folder / "cost.json"), _json(folder / "paper.json")),
        ),
        "layers": Table(
            ("layer_latency.json",), partial(table_of, layer_latency_table, "layer_latency")
        ),
        "bench": Table(("bench.json",), lambda folder: bench_table(_json(folder / "bench.json"))),
        "plan_speed": Table(
            ("plan_speed.json",),
            lambda folder: plan_speed_table(_json(folder / "plan_speed.json")),
        ),
    },
    "scripts/results/targets.md": {
        name: Table((f"{file}.json",), partial(table_of, make, file))
        for name, (make, file) in {
            "reach": (reach_table, "target_reach"),
            "latency": (latency_table, "target_latency"),
            "additivity": (additivity_table, "additivity"),
        }.items()
    },
    "scripts/results/exports.md": {
        "networks": Table(
            ("exports.json",), lambda folder: exports_table(_json(folder / "exports.json"))
        ),
        "trained": Table(
            ("exports_trained.jsonl",),
            lambda folder: trained_table(read_lines(folder / "exports_trained.jsonl")),
        ),
    },
    "scripts/results/torture.md": {
        "torture": Table(
            ("torture.jsonl",), lambda folder: torture_table(read_lines(folder / "torture.jsonl"))
        ),
    },
    "scripts/results/yolo.md": {
        "yolo": Table(
            ("yolo.jsonl",), lambda folder: yolo_table(read_lines(folder / "yolo.jsonl"))
        ),
    },
    **{
        f"scripts/results/compare/{name}.md": {
            table: Table((_lines(of),), partial(comparison_table, of))
            for table, of in {
                "comparison": name,
                **{variant: f"{name}+{variant}" for variant in NETWORKS.get(name, ())},
            }.items()
        }
        for name in (*COMPARISONS, *(each for each in NETWORKS if each not in COMPARISONS))
    },
}
PAGES["scripts/results/compare/methods.md"] |= {
    "sources": Table((_lines("methods"),), lambda _: sources_table()),
    "beside": Table(("masks_and_gates.json",), partial(table_of, beside_table, "masks_and_gates")),
    "criteria": Table(("criteria_cost.json",), partial(table_of, criteria_table, "criteria_cost")),
}
DEPTH = {name: "+".join(["depth_16px", *rows]) for name, rows in depth_latency.NETWORKS.items()}
PAGES["scripts/results/compare/depth_16px.md"] |= {
    "depth_latency": Table(
        ("depth_latency.json", *map(_lines, DEPTH.values())),
        lambda folder: depth_table(
            _json(folder / "depth_latency.json"),
            {name: comparison(folder, of) for name, of in DEPTH.items()},
        ),
    ),
}
"""The tables of each page, by the name in their markers."""


def filled(text: str, tables: Mapping[str, Table], page: str = "README.md") -> str:
    """Return the text of a page with its tables made anew, as far as their files are there.

    Args:
        text: The page as it is.
        tables: Its tables, by name.
        page: Its name, for errors.

    Raises:
        ValueError: The markers of a table are missing, or not one of each in their order.
    """
    made = {
        name: table.make(RESULTS)
        for name, table in tables.items()
        if any((RESULTS / file).exists() for file in table.files)
    }
    return fill(text, made, page)


def main(args: Sequence[str] | None = None) -> int:
    """Write all pages; with --check, only say which are not up to date."""
    args = sys.argv[1:] if args is None else args
    old = {page: (ROOT / page).read_text() for page in PAGES}
    new = {page: filled(text, PAGES[page], page) for page, text in old.items()}
    changed = [page for page in PAGES if new[page] != old[page]]
    for page in changed:
        print(page)
        if "--check" not in args:
            (ROOT / page).write_text(new[page])
    return int("--check" in args and bool(changed))


if __name__ == "__main__":
    sys.exit(main())

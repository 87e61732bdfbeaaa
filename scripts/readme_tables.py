"""Write the README's tables from committed result files, between its marker comments."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from branchprune.zoo_table import markdown_summary, read_csv

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"


def table_of_rows(result: dict[str, Any], digits: int) -> str:
    """Return the rows of a result as a table: median, quartiles and target of each."""
    lines = ["| | median | quartiles | target |", "|---|---|---|---|"]
    for row in result["rows"]:
        median, low, high = (f"{row[key]:.{digits}f}" for key in ("value", "low", "high"))
        lines.append(f"| {row['what']} | {median} | {low}–{high} | {row['target'] or '–'} |")
    return "\n".join(lines)


def bench_table(result: dict[str, Any]) -> str:
    """Return the table of `branchprune bench`."""
    options, size = result["options"], result["options"]["image_size"]
    return (
        f"VGG-16, {size}×{size} images, batch {options['batch_size']}, {result['threads']} "
        f"threads, {result['hardware']}, torch {result['versions']['torch']}, commit "
        f"{result['commit']}. Ratios are medians of {options['repeats']} alternating pairs, with "
        "quartiles. Command: `branchprune bench --output scripts/results/bench.json`.\n\n"
        f"{table_of_rows(result, 2)}"
    )


def plan_speed_table(result: dict[str, Any]) -> str:
    """Return the table of `scripts/plan_speed.py`."""
    options, versions = result["options"], result["versions"]
    return (
        f"{options['model']}, {result['threads']} thread(s), {result['hardware']}, torch "
        f"{versions['torch']}, Torch-Pruning {versions['torch_pruning']}, commit "
        f"{result['commit']}; medians of {options['pairs']} alternating pairs, with quartiles. "
        f"Command: `python scripts/plan_speed.py --threads {result['threads']} --output "
        f"scripts/results/plan_speed.json`.\n\n{table_of_rows(result, 3)}"
    )


def zoo_table(path: Path) -> str:
    """Return the summary of `branchprune zoo`, by family, from its `zoo.csv`."""
    return markdown_summary(read_csv(path))


TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "bench": ("bench.json", lambda path: bench_table(json.loads(path.read_text()))),
    "plan_speed": ("plan_speed.json", lambda path: plan_speed_table(json.loads(path.read_text()))),
    "zoo": ("zoo.csv", zoo_table),
}
OPTIONAL = ("zoo", "plan_speed")


def fill(text: str) -> str:
    """Return the README's text with every table made anew.

    An optional table is left out where its result file or its markers are missing.

    Raises:
        ValueError: A marker is missing, or there are several.
    """
    for name, (file, table) in TABLES.items():
        marker = f"<!-- {name} -->"
        if name in OPTIONAL and (marker not in text or not (RESULTS / file).exists()):
            continue
        block = f"{marker}\n{table(RESULTS / file)}\n<!-- /{name} -->"
        place = rf"{marker}.*?<!-- /{name} -->"
        text, count = re.subn(place, block.replace("\\", r"\\"), text, flags=re.S)
        if count != 1:
            raise ValueError(f"README.md has {count} places for the table {name!r}, not 1")
    return text


def main(args: Sequence[str] | None = None) -> int:
    """Write README.md; with --check, only say whether it is up to date."""
    args = sys.argv[1:] if args is None else args
    path = ROOT / "README.md"
    new = fill(path.read_text())
    if "--check" in args:
        return int(new != path.read_text())
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

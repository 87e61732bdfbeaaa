"""Write the README's tables from committed result files, between its marker comments."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "results"


def bench_table(result: dict[str, Any]) -> str:
    """Return the table of `branchprune bench`."""
    options = result["options"]
    versions = result["versions"]
    rows = [
        f"VGG-16, {options['image_size']}×{options['image_size']} images, batch "
        f"{options['batch_size']}, {result['threads']} threads, {result['hardware']}, torch "
        f"{versions['torch']}, commit {result['commit']}. Ratios are medians of "
        f"{options['repeats']} alternating pairs, with quartiles. Command: "
        "`branchprune bench --output scripts/results/bench.json`.",
        "",
        "| | median | quartiles | target |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        spread = f"{row['low']:.2f}–{row['high']:.2f}"
        rows.append(f"| {row['what']} | {row['value']:.2f} | {spread} | {row['target'] or '–'} |")
    return "\n".join(rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "bench": ("bench.json", bench_table),
}


def fill(text: str) -> str:
    """Return the README's text with every table made anew.

    Raises:
        ValueError: A marker is missing.
    """
    for name, (file, table) in TABLES.items():
        content = table(json.loads((RESULTS / file).read_text()))
        block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        place = rf"<!-- {name} -->.*?<!-- /{name} -->"
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

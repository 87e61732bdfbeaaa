"""Write the README's tables from committed result files, between its marker comments."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paper_tables import FILES, NOTHING, Paper, folded, paper_table, read_results

from branchprune.cost import Options
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


def cost_table(result: dict[str, Any], paper: Paper) -> str:
    """Return time and memory beside the paper's table 1, and all measurements folded away.

    Args:
        result: What `branchprune cost` writes.
        paper: The paper's own values, as in `scripts/results/paper.json`.
    """
    default, options = asdict(Options()), result["options"]
    changed = [(key, value) for key, value in options.items() if value != default[key]]
    arguments = "".join(f" --{key} {shlex.quote(json.dumps(value))}" for key, value in changed)
    lines = [
        "| model | device | time: the paper | here | memory: the paper | here |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in paper["cost"]:
        (slow, fast), (large, small) = row["time"], row["memory"]
        name = f"{row['model']}, {row['how']}" if row["how"] else row["model"]
        ours = [quotients(result["summary"], row, key) for key in ("faster", "smaller")]
        lines.append(
            f"| {name} | {row['device']} | {slow:.4f} → {fast:.4f} s ({slow / fast:.2f}×) "
            f"| {ours[0]} | {large:.2f} → {small:.2f} GB ({large / small:.2f}×) | {ours[1]} |"
        )
    return (
        f"{result['hardware']}, torch {result['versions']['torch']}, commit {result['commit']}, "
        f"keep {options['keep']}. Dense / small, medians of {options['repeats']} pairs of processes"
        ", with quartiles. The paper's time is of an image. Memory is what the process grows by "
        "(cpu) or the peak of the allocator (cuda). Command: "
        f"`branchprune cost{arguments} --output scripts/results/cost.json`.\n\n"
        + "\n".join(lines)
        + f"\n\n{folded('All measurements', measurements(result['summary']))}"
    )


def quotients(summary: Sequence[dict[str, Any]], row: Mapping[str, Any], key: str) -> str:
    """Return dense / small of a model on a device, batch by batch, without torch.compile."""
    found = [
        f"batch {each['batch']}: {ratio(each[key])}"
        for each in summary
        if (each["model"], each["device"]) == (row["model"], row["device"])
        and (each["variant"], each["mode"]) == ("small", "eager")
        and each[key]
    ]
    return "<br>".join(found) or NOTHING


def ratio(quartiles: Sequence[float] | None) -> str:
    """Return a median with its quartiles."""
    if quartiles is None:
        return NOTHING
    low, middle, high = quartiles
    return f"{middle:.2f}× ({low:.2f}–{high:.2f})"


def measurements(summary: Sequence[dict[str, Any]]) -> str:
    """Return a table of everything that `branchprune cost` measured."""
    lines = [
        "| model | variant | device | batch | mode | ms an image | dense / this | memory, MiB "
        "| dense / this |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for each in summary:
        time, memory = each["image_s"], each["memory_bytes"]
        cells = [
            *(each["model"], each["variant"], each["device"], str(each["batch"]), each["mode"]),
            (each["error"] or NOTHING)[:60] if time is None else f"{1e3 * time[1]:.3g}",
            ratio(each["faster"]),
            NOTHING if memory is None else f"{memory[1] / 2**20:.1f}",
            ratio(each["smaller"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Path], str]]] = {
    "bench": (("bench.json",), lambda folder: bench_table(_json(folder / "bench.json"))),
    "plan_speed": (
        ("plan_speed.json",),
        lambda folder: plan_speed_table(_json(folder / "plan_speed.json")),
    ),
    "zoo": (("zoo.csv",), lambda folder: zoo_table(folder / "zoo.csv")),
    "paper": (
        FILES,
        lambda folder: paper_table(read_results(folder), _json(folder / "paper.json")),
    ),
    "cost": (
        ("cost.json",),
        lambda folder: cost_table(_json(folder / "cost.json"), _json(folder / "paper.json")),
    ),
}
"""For each table its files, one of which must be there, and what makes it from their folder."""

OPTIONAL = ("zoo", "plan_speed", "paper", "cost")


def fill(text: str) -> str:
    """Return the README's text with every table made anew.

    An optional table is left out where its result files or its markers are missing.

    Raises:
        ValueError: A marker is missing, or there are several.
    """
    for name, (files, table) in TABLES.items():
        marker = f"<!-- {name} -->"
        there = any((RESULTS / file).exists() for file in files)
        if name in OPTIONAL and (marker not in text or not there):
            continue
        block = f"{marker}\n{table(RESULTS)}\n<!-- /{name} -->"
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

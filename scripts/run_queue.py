"""The queue of long runs: queue.yaml, the most important first.

What has a line of results is done. A run that was broken off goes on from its last epoch when
`python scripts/reproduce.py --next` is called again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from branchprune.errors import PruneError
from branchprune.experiments.compare import compare, config, results

ROOT = Path(__file__).resolve().parents[1]
QUEUE, RECORDED = ROOT / "scripts" / "queue.yaml", ROOT / "scripts" / "results" / "compare"


@dataclass(frozen=True)
class Item:
    """A run of a comparison.

    Args:
        experiment: Name of the comparison, a file in configs/compare/.
        method: Name of the method there.
        budget: Name of the budget there.
        seed: Its seed.
        hours: How long it is expected to take on two cores.
    """

    experiment: str
    method: str
    budget: str
    seed: int
    hours: float

    @property
    def run(self) -> config.Run:
        """The run of the comparison."""
        return config.Run(self.method, self.budget, self.seed)

    @property
    def file(self) -> Path:
        """The comparison's file."""
        return ROOT / "configs" / "compare" / f"{self.experiment}.yaml"


@cache
def comparison(file: Path) -> config.Comparison:
    """Return a comparison."""
    return config.read(file)


def read(path: Path = QUEUE) -> list[Item]:
    """Return the queue.

    Raises:
        PruneError: An item has other keys, or names a run that its comparison does not have.
    """
    items = []
    for number, given in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), 1):
        item = _item(given, f"{path.name}, item {number}")
        if item.run not in comparison(item.file).runs():
            raise PruneError(f"{path.name}, item {number}: {item.run} is not in {item.file.name}")
        items.append(item)
    return items


def _item(given: Any, where: str) -> Item:
    keys = {field.name for field in fields(Item)}
    if not isinstance(given, dict) or given.keys() != keys:
        raise PruneError(f"{where} (={given}) must have the keys {', '.join(sorted(keys))}")
    return Item(**given)


def left(items: Sequence[Item], record: bool) -> list[Item]:
    """Return the items that have no line of results yet.

    Args:
        items: The queue.
        record: Whether the lines are those that are committed, or those in runs/.
    """
    missing = {file: _missing(file, record) for file in {item.file for item in items}}
    return [item for item in items if item.run in missing[item.file]]


def _missing(file: Path, record: bool) -> list[config.Run]:
    folder = RECORDED if record else ROOT / "runs" / "compare" / file.stem
    return results.read(comparison(file), folder / f"{file.stem}.jsonl").missing()


def go(minutes: float, threads: int, record: bool, device: str) -> int:
    """Run item after item until all are done, one fails, or the time is over; say what is left.

    Args:
        minutes: Time budget.
        threads: Threads of a run.
        record: Whether lines are added to those that are committed; else they stay in runs/.
        device: "auto", "cpu", or "cuda", which adds configs/gpu.yaml.

    Returns:
        1 if a run failed, else 0.
    """
    items, end, failed = read(), time.monotonic() + 60 * minutes, False
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    options = ["--threads", str(threads)]
    options += ["--overlay", "configs/gpu.yaml"] if device == "cuda" else []
    options += ["--record"] if record else []
    todo = left(items, record)
    while todo and not failed and (rest := end - time.monotonic()) > 0:
        item = todo[0]
        print(f"next: {item.experiment}, {item.run.name}, {item.hours:g} hours", flush=True)
        file = str(item.file.relative_to(ROOT))
        command = [file, "--only", item.run.name, "--minutes", str(rest / 60), *options]
        failed = compare.compare(command, Console()).failed
        todo = left(items, record)
        failed = failed or (item in todo and time.monotonic() < end)
    for item in todo:
        print(f"left: {item.experiment}, {item.run.name}, {item.hours:g} hours")
    hours = sum(item.hours for item in todo)
    print(f"{len(items) - len(todo)} runs done, {len(todo)} left: {hours:g} hours")
    return int(failed)


def main(args: Sequence[str]) -> int:
    """Parse the command line and run; return 1 if a run failed."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py --next", description=str(__doc__).splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="time budget")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run")
    record = "add the lines to those that are committed, in scripts/results/compare"
    parser.add_argument("--record", action="store_true", help=record)
    device = "where; cuda adds configs/gpu.yaml"
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help=device)
    with chdir(ROOT):
        return go(**vars(parser.parse_args(args)))

"""The options of `branchprune compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from branchprune.experiments.environment import RECORD_HELP


@dataclass
class Options:
    """Options of `branchprune compare`.

    Args:
        config: YAML file with the methods, the budgets and the seeds.
        output: Folder of the runs, the table and the plots; null: runs/compare/NAME, behind which
            come the variants, as NAME+VARIANT.
        results: File of the lines of results; null: NAME.jsonl in the output folder.
        record: Add the lines to those that are committed, scripts/results/compare/NAME.jsonl.
        jobs: Runs side by side.
        threads: Threads of each.
        minutes: Time budget; the runs take up to 20 seconds more to end.
        only: Patterns of runs to make, as "equal_epochs/*-0".
        seeds: Seeds to run of those of the configuration; null: all.
        variant: Variants of the file that all runs have, before those of their methods.
        overlay: More YAML files, which override those of the methods.
        table: Only write the table and the plots again, from the results.
    """

    config: Path
    output: Path | None = None
    results: Path | None = None
    record: bool = False
    jobs: int = 1
    threads: int = 1
    minutes: float = 1e6
    only: Sequence[str] = ("*",)
    seeds: list[int] | None = None
    variant: list[str] | None = None
    overlay: list[Path] | None = None
    table: bool = False


def make_parser() -> ArgumentParser:
    """Return the parser of `branchprune compare`."""
    parser = ArgumentParser(
        prog="branchprune compare",
        exit_on_error=False,
        allow_abbrev=False,
        description="Compare methods at equal budgets, seed by seed, from one dense model.",
    )
    add = parser.add_argument
    add("config", type=Path, help="YAML file: name, seeds, budgets, methods, and what runs share")
    add("--output", type=Path, help="Folder to write; default: runs/compare/NAME[+VARIANT]")
    add("--results", type=Path, help="File of result lines; default: OUTPUT/NAME.jsonl")
    add("--record", action="store_true", help=RECORD_HELP)
    add("--jobs", type=PositiveInt, default=1, help="Runs side by side")
    add("--threads", type=PositiveInt, default=1, help="Threads of each")
    add("--minutes", type=PositiveFloat, default=1e6, help="Time budget")
    add("--only", nargs="+", default=["*"], help='Patterns of runs, as "equal_epochs/*-0"')
    add("--seeds", type=NonNegativeInt, nargs="+", help="Seeds to run; default: all")
    add("--variant", type=str, action="append", help="Variant of the file for all runs; repeatable")
    add("--overlay", type=Path, nargs="+", help="YAML files that override all others")
    add("--table", action="store_true", help="Only write table and plots, from the results")
    return parser

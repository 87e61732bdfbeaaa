"""Methods by budgets by seeds, from one dense model, side by side and resumable."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console

from branchprune.errors import PruneError
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.experiments.compare.config import Comparison, Run
from branchprune.experiments.compare.results import Results
from branchprune.experiments.environment import RECORD_HELP, recorded
from branchprune.experiments.files import read_object, refusals_named, write_whole
from branchprune.experiments.jobs import Job, JobRunner, shown
from branchprune.experiments.variants import check, read_file

COMMAND = [sys.executable, "-m", "branchprune"]


@dataclass
class Options:
    """Options of `branchprune compare`.

    Args:
        config: YAML file with the methods, the budgets and the seeds.
        output: Folder of the runs, the table and the plots; null: runs/compare/NAME.
        results: File of the lines of results; null: NAME.jsonl in the output folder.
        record: Add the lines to those that are committed, scripts/results/compare/NAME.jsonl.
        jobs: Runs side by side.
        threads: Threads of each.
        minutes: Time budget; the runs take up to 20 seconds more to end.
        only: Pattern of runs to make, as "equal_epochs/*-0".
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
    only: str = "*"
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
        description="Compare methods by budgets by seeds, from one dense model.",
    )
    add = parser.add_argument
    add("config", type=Path, help="YAML file: name, seeds, budgets, methods, and what runs share")
    add("--output", type=Path, help="Folder to write; default: runs/compare/NAME")
    add("--results", type=Path, help="File of result lines; default: OUTPUT/NAME.jsonl")
    add("--record", action="store_true", help=RECORD_HELP)
    add("--jobs", type=PositiveInt, default=1, help="Runs side by side")
    add("--threads", type=PositiveInt, default=1, help="Threads of each")
    add("--minutes", type=PositiveFloat, default=1e6, help="Time budget")
    add("--only", type=str, default="*", help='Pattern of runs, as "equal_epochs/*-0"')
    add("--seeds", type=NonNegativeInt, nargs="+", help="Seeds to run; default: all")
    add("--variant", type=str, action="append", help="Variant of the file for all runs; repeatable")
    add("--overlay", type=Path, nargs="+", help="YAML files that override all others")
    add("--table", action="store_true", help="Only write table and plots, from the results")
    return parser


@dataclass(frozen=True)
class Compared:
    """What a comparison came to.

    Args:
        results: What its runs found, as far as there are lines.
        output: The folder for its table and plots.
        failed: Whether a run failed.
    """

    results: Results
    output: Path
    failed: bool


def compare(args: Sequence[str], console: Console) -> Compared:
    """Make the runs that are missing, and read the results of all.

    Args:
        args: Arguments of `branchprune compare`.
        console: Where to show progress.

    Raises:
        PruneError: An option or the configuration is wrong, the output cannot be written, or the
            results are of another dense model.
    """
    try:
        options = Options(**vars(make_parser().parse_args(list(args))))
    except ArgumentError as error:
        raise PruneError(str(error)) from error
    comparing = _Comparing(compare_config.read(options.config), options, console)
    with refusals_named():
        failed = not options.table and comparing.go()
    return Compared(comparing.found(), comparing.output, failed)


class _Comparing:
    """A comparison that is carried out.

    Args:
        comparison: What to compare.
        options: Where and how.
        console: Where to show progress.
    """

    def __init__(self, comparison: Comparison, options: Options, console: Console) -> None:
        self.comparison, self.options, self.cwd = comparison, options, Path.cwd()
        self.say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        self.output = options.output or Path("runs/compare") / comparison.name
        self.results = self._results()
        self.stored = compare_results.dense_file(comparison, self.results)
        self.dense = self.output / "dense"
        self.runs = self._chosen()
        self.files = [*map(self._shown, [comparison.path, *(options.overlay or [])])]

    def _results(self) -> Path:
        options, name = self.options, f"{self.comparison.name}.jsonl"
        if options.record and options.results:
            raise PruneError(f"record and results (={options.results}) exclude each other")
        if options.record:
            return recorded(f"compare/{name}")
        return options.results or self.output / name

    def _chosen(self) -> list[Run]:
        """Return the runs that the options name."""
        options, runs = self.options, self.comparison.runs()
        unknown = {*(options.seeds or [])} - {run.seed for run in runs}
        if unknown:
            raise PruneError(
                f"seeds (={options.seeds}): {min(unknown)} is not in the configuration"
            )
        chosen = [run for run in runs if options.seeds is None or run.seed in options.seeds]
        chosen = [run for run in chosen if fnmatch(run.name, options.only)]
        if not chosen:
            raise PruneError(
                f"only (={options.only!r}) is none of {', '.join(r.name for r in runs)}"
            )
        self._check_files()
        return chosen

    def _check_files(self) -> None:
        """Raise where a file or a variant that the options name is missing."""
        overlays = self.options.overlay or []
        for file in overlays:
            if not file.is_file():
                raise PruneError(f"overlay (={str(file)!r}) does not exist")
        files = [*map(read_file, [self.comparison.path, *overlays])]
        check(self.options.variant or [], files, "variant")

    def go(self) -> bool:
        """Make what is missing; return whether a run failed."""
        options = self.options
        runner = JobRunner(
            self.output, options.jobs, options.threads, options.minutes, self.cwd, self.say
        )
        dense = Job("dense", self._dense_command, done=self._needs_no_dense)
        jobs = [
            Job(
                run.name,
                command=partial(self._command, run),
                done=partial(self._is_done, run),
                ready=self._has_dense,
            )
            for run in self.runs
        ]
        missing = [job for job in runner.run([dense, *jobs]) if job != dense]
        self.say(f"{len(jobs) - len(missing)} runs are done, {len(missing)} missing")
        return bool(runner.failed)

    def found(self) -> Results:
        """Return what all runs found; say so if that is nothing."""
        results = self._read()
        if not results.lines:
            self.say(f"no results in {self.results}")
        return results

    def _read(self) -> Results:
        return compare_results.read(self.comparison, self.results)

    def _is_done(self, run: Run) -> bool:
        return run not in self._read().missing()

    def _dense_record(self) -> dict[str, Any] | None:
        """Return what the dense training left, once it is over."""
        found = read_object(self.dense / "dense" / "finished.json")
        return found if (self.dense / "dense.safetensors").exists() else None

    def _has_dense(self) -> bool:
        return self._dense_record() is not None

    def _needs_no_dense(self) -> bool:
        return self._has_dense() or not {*self.runs} & {*self._read().missing()}

    def _shown(self, path: Path) -> str:
        return shown(path, self.cwd)

    def _variants(self, rows: Sequence[str]) -> list[str]:
        names = [*(self.options.variant or []), *rows]
        return [part for name in names for part in ("--variant", name)]

    def _dense_command(self) -> list[str]:
        seed = str(self.comparison.seeds[0])
        command = [*COMMAND, "dense", *self.files, *self._variants([]), "--seed", seed]
        return [*command, "--output", self._shown(self.dense), "--resume"]

    def _command(self, run: Run) -> list[str]:
        comparison, rows = self.comparison, self.comparison.methods[run.method].rows
        return [
            *(*COMMAND, "run", *self.files, *self._variants(rows)),
            *("--name", comparison.experiment, "--method", run.method, "--preset", run.budget),
            *self._budget(run),
            *("--seed", str(run.seed), "--output", self._shown(self.output / run.name)),
            *("--results", self._shown(self.results), "--resume", "--dense.epochs", "0"),
            *("--dense.checkpoint", self._shown(self.dense / "dense.safetensors")),
        ]

    def _budget(self, run: Run) -> list[str]:
        """Return the options that limit a run; multiply-adds in absolute numbers."""
        budget, dense = self.comparison.budgets[run.budget], self._store_dense()
        if budget.epochs is not None:
            return ["--prune.cost.epochs", str(budget.epochs)]
        if budget.train_macs is None:
            return []
        if not dense["record"]:
            raise PruneError(
                f"budgets.{budget.name}.train_macs (={budget.train_macs}) is a multiple of the "
                "dense training, and the file takes the dense model from a checkpoint"
            )
        limit = round(budget.train_macs * dense["record"]["train_macs"])
        return ["--prune.cost.train_macs", str(limit)]

    def _store_dense(self) -> dict[str, Any]:
        """Keep beside the results what the dense training left, and its command; return it.

        Raises:
            PruneError: The results are of another dense model.
        """
        found, stored = self._dense_record(), read_object(self.stored) or {}
        assert found is not None, "runs start after the dense training"
        if stored.get("scores") == found["scores"]:
            return found
        if stored and self._read().lines:
            raise PruneError(
                f"{self.results} holds runs of another dense model (scores {stored['scores']}) "
                f"than that of {self.dense} (scores {found['scores']}): give another --results"
            )
        command = shlex.join(["branchprune", *self._dense_command()[len(COMMAND) :]])
        self.stored.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.stored, json.dumps({"command": command, **found}, indent=1) + "\n")
        return found

"""Methods by budgets by seeds, from one dense model, side by side and resumable."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from branchprune.errors import PruneError
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.experiments.compare.config import Comparison, Run
from branchprune.experiments.compare.options import Options, make_parser
from branchprune.experiments.compare.results import Line, Results, run_of
from branchprune.experiments.compare.stale import StaleCheck
from branchprune.experiments.environment import recorded
from branchprune.experiments.files import read_object, refusals_named, write_whole
from branchprune.experiments.jobs import Job, JobRunner, shown
from branchprune.experiments.parsed import parsed
from branchprune.experiments.run.configuration_digest import OF_DENSE

COMMAND = [sys.executable, "-m", "branchprune"]


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
    options = Options(**vars(parsed(make_parser(), args)))
    comparison = compare_config.read(options.config, options.variant or (), options.overlay or ())
    comparing = _Comparing(comparison, options, console)
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
        self.stale = StaleCheck(self.say)
        self.runs = self._chosen()
        self.files = [*map(self._shown, [comparison.path, *comparison.overlays])]

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
        for pattern in options.only:
            if not any(fnmatch(run.name, pattern) for run in chosen):
                known = [run.name for run in chosen]
                like = get_close_matches(pattern, known, cutoff=0) or known
                raise PruneError(
                    f"only (={pattern!r}) is none of the {len(known)} runs, such as "
                    f"{', '.join(like)}"
                )
        return [run for run in chosen if any(fnmatch(run.name, x) for x in options.only)]

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
        unknown = sum("configuration" not in line for line in results.lines)
        if unknown:
            self.say(f"the configuration of {unknown} lines is unknown: they do not say it")
        return results

    def _read(self) -> Results:
        """Return the results without lines of another configuration than today's."""
        results = compare_results.read(self.comparison, self.results)
        return results.only(self._is_current)

    def _is_current(self, line: Line) -> bool:
        """Return whether a line is of today's configuration, as far as that is known."""
        if "configuration" not in line:
            return True
        run = run_of(line)
        record = self._dense_record() or read_object(self.stored)
        if self.comparison.budgets[run.budget].train_macs is not None and record is None:
            return True
        left = "it is left out" if self.options.table else "it runs anew"
        arguments = self._arguments(run, record)
        return self.stale.is_current(line["configuration"], run.name, arguments, left)

    def _is_done(self, run: Run) -> bool:
        return run not in self._read().missing()

    def _dense_record(self) -> dict[str, Any] | None:
        """Return what the dense training left, once it is over; None of another configuration."""
        found = read_object(self.dense / "dense" / "finished.json")
        whole = found is not None and (self.dense / "dense.safetensors").exists()
        if not whole or self.stale.differs(self.dense, self._dense_arguments(), OF_DENSE):
            return None
        return found

    def _has_dense(self) -> bool:
        return self._dense_record() is not None

    def _needs_no_dense(self) -> bool:
        return self._has_dense() or not {*self.runs} & {*self._read().missing()}

    def _shown(self, path: Path) -> str:
        return shown(path, self.cwd)

    def _variants(self, rows: Sequence[str]) -> list[str]:
        names = [*self.comparison.variants, *rows]
        return [part for name in names for part in ("--variant", name)]

    def _dense_command(self) -> list[str]:
        arguments = self._dense_arguments()
        options = self.stale.resume_options(self.dense, arguments, OF_DENSE)
        return [*COMMAND, "dense", *arguments, *options]

    def _dense_arguments(self) -> list[str]:
        seed = str(self.comparison.seeds[0])
        options = ["--seed", seed, "--output", self._shown(self.dense)]
        return [*self.files, *self._variants([]), *options]

    def _command(self, run: Run) -> list[str]:
        arguments = self._arguments(run, self._store_dense())
        options = self.stale.resume_options(self.output / run.name, arguments)
        return [*COMMAND, "run", *arguments, *options]

    def _arguments(self, run: Run, dense: dict[str, Any] | None) -> list[str]:
        """Return the arguments of a run; `dense` is what the dense training left."""
        comparison = self.comparison
        rows = comparison.methods[run.method].rows + comparison.budgets[run.budget].rows
        return [
            *(*self.files, *self._variants(rows)),
            *("--name", comparison.experiment, "--method", run.method, "--preset", run.budget),
            *self._budget(run, dense or {}),
            *("--seed", str(run.seed), "--output", self._shown(self.output / run.name)),
            *("--results", self._shown(self.results), "--dense.epochs", "0"),
            *("--dense.checkpoint", self._shown(self.dense / "dense.safetensors")),
        ]

    def _budget(self, run: Run, dense: dict[str, Any]) -> list[str]:
        """Return the options that limit a run; multiply-adds in absolute numbers."""
        budget = self.comparison.budgets[run.budget]
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

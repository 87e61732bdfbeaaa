"""The command line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import torch

from branchprune import __version__
from branchprune.errors import PruneError, how_to_install
from branchprune.experiments.interruption import (
    PIPE,
    Interrupted,
    folder_named,
    how_to_go_on,
    interruptible,
)

# Each command imports what it needs, rich included, when it is called: help does not wait for it.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from branchprune.experiments.run.config import RunConfig

USAGE = """usage: branchprune run CONFIG.yaml [--option value ...]
       branchprune dense CONFIG.yaml [--option value ...]
       branchprune compare CONFIG.yaml [--option value ...]
       branchprune report FOLDER
       branchprune bench [--option value ...]
       branchprune cost [CONFIG.yaml ...] [--option value ...]
       branchprune zoo [--option value ...]
       branchprune --version

run     train a dense model, prune it, collapse, verify, measure, report
dense   only train the dense model, with the options of run
compare compare methods at equal budgets, from one dense model
report  write the report of a finished run again
bench   measure what blending costs and what the collapse saves
cost    measure time and memory of the paper's models, dense and small
zoo     plan, blend and collapse every model of torchvision or timm

`branchprune run --help` lists the options, which are the keys of a configuration."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0; 2 for an error of the user's.

    `zoo` returns 1 if a model failed, `compare` if a run did. Ctrl-C gives 130, SIGTERM 143, an
    output that nobody reads, as behind `| head`, 141.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if args is None else args))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        return Interrupted(PIPE).status


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(version())
        return 0
    try:
        return _command(args)
    except ModuleNotFoundError as error:
        if (message := how_to_install(error)) is None:
            raise
        print(f"branchprune: error: {message}", file=sys.stderr)
        return 2


def version() -> str:
    """Return the version of branchprune and of what results depend on."""
    return f"branchprune {__version__} (torch {torch.__version__}, Python {python_version()})"


def _command(args: list[str]) -> int:
    from rich.console import Console

    class Output(Console):
        """What a command says; rich would end the process in silence where nobody reads it."""

        def on_broken_pipe(self) -> None:
            raise Interrupted(PIPE)

    console = Output()
    commands = {
        **{"run": _run, "dense": _dense, "compare": _compare, "report": _report},
        **{"bench": _bench, "cost": _cost, "zoo": _zoo},
    }
    try:
        if args[0] not in commands:
            raise PruneError(f"unknown command {args[0]!r}\n{USAGE}")
        with interruptible():
            return commands[args[0]](args[1:], console) or 0
    except Interrupted as interrupted:
        text = how_to_go_on(interrupted, args[0], args[1:])
        Console(stderr=True).print(f"branchprune: {text}", markup=False, soft_wrap=True)
        return interrupted.status
    except PruneError as error:
        Console(stderr=True).print(
            f"branchprune: error: {error}", style="red", markup=False, soft_wrap=True
        )
        return 2


def _run(args: list[str], console: Console) -> None:
    from branchprune.experiments.files import unwritable_named
    from branchprune.experiments.run.experiment import run
    from branchprune.reports.report import write_report

    config = _configuration("run", args)
    if config is None:
        return
    report = config.output / "report.html"
    with folder_named(config.output, config.resume):
        result = run(config, shlex.join(["branchprune", "run", *args]), console)
        if not report.exists():
            with unwritable_named(config.output):
                write_report(config.output)
    console.print(summary(result))
    console.print(f"{report}", style="bold", soft_wrap=True)


def _dense(args: list[str], console: Console) -> None:
    from branchprune.experiments.run.experiment import train_dense

    config = _configuration("dense", args)
    if config is not None:
        with folder_named(config.output, config.resume):
            train_dense(config, console)


def _configuration(command: str, args: list[str]) -> RunConfig | None:
    """Return the configuration of a run; None where help was shown instead."""
    from branchprune.experiments.run.config import help_text, parse

    if not args or {"-h", "--help"} & set(args):
        print(help_text(command))
        return None
    sys.path.insert(0, str(Path.cwd()))  # import paths may lead into the current folder
    return parse(args)


def _compare(args: list[str], console: Console) -> int:
    from branchprune.experiments.compare.compare import compare
    from branchprune.experiments.jobs import shown
    from branchprune.reports.comparison import write_comparison

    compared = compare(args, console)
    if compared.results.lines:
        table, plots = write_comparison(compared.results, compared.output)
        paths = " ".join(shown(path, Path.cwd()) for path in plots)
        for text in (table, paths):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return int(compared.failed)


def _report(args: list[str], console: Console) -> None:
    from branchprune.reports.report import write_report

    if len(args) != 1:
        raise PruneError(f"report takes one folder, not {args}")
    console.print(f"{write_report(Path(args[0]))}")


def _bench(args: list[str], console: Console) -> None:
    from branchprune.benchmarks.bench import main as bench

    bench(args, console)


def _cost(args: list[str], console: Console) -> None:
    from branchprune.benchmarks.cost import main as cost

    cost(args, console)


def _zoo(args: list[str], console: Console) -> int:
    from branchprune.benchmarks.zoo import main as zoo

    return zoo(args, console)


def summary(result: dict[str, Any]) -> Table:
    """Return the table that ends a run: dense against small, as in the report."""
    from rich.table import Table

    from branchprune.reports.before_after import compare

    table = Table(title=f"{result['experiment']}, seed {result['seed']}")
    table.add_column()
    for column in ("dense", "small", "change"):
        table.add_column(column, justify="right")
    for row in compare(result):
        table.add_row(row.label, row.before, row.after, row.change)
    error = result["collapse"]["relative_error"]
    table.add_row("Error of the collapse, float64", "", f"{error:.1e}", "")
    return table


if __name__ == "__main__":
    sys.exit(main())

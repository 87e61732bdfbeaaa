"""The commands. Each imports what it needs when it is called, so that none waits for all of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from branchprune.errors import Failed, PruneError
from branchprune.experiments.interruption import (
    PIPE,
    Interrupted,
    folder_named,
    how_to_go_on,
    interruptible,
)

REPORT = """usage: branchprune report FOLDER

Write the page report.html of a run that is done again, from its result.json and metrics.

positional arguments:
  FOLDER  folder of the run, where the page is replaced"""


class Output(Console):
    """What a command says; rich would end the process in silence where nobody reads it."""

    def on_broken_pipe(self) -> None:
        """End the command as a signal does."""
        raise Interrupted(PIPE)


def call(name: str, args: Sequence[str]) -> int:
    """Carry out a command; return the exit status.

    Args:
        name: One of `COMMANDS`.
        args: Its arguments.
    """
    try:
        with interruptible():
            return COMMANDS[name](args, Output()) or 0
    except Interrupted as interrupted:
        _complain(how_to_go_on(interrupted, name, args))
        return interrupted.status
    except PruneError as error:
        _complain(f"error: {error}", style="red")
        return 1 if isinstance(error, Failed) else 2


def _complain(text: str, style: str | None = None) -> None:
    console = Console(stderr=True)
    console.print(f"branchprune: {text}", style=style, markup=False, soft_wrap=True)


def _run(args: Sequence[str], console: Console) -> None:
    from branchprune.experiments.files import unwritable_named
    from branchprune.experiments.locks import locked
    from branchprune.experiments.run.config import parse
    from branchprune.experiments.run.experiment import run
    from branchprune.reports.report import write_report

    if _asks_for_help("run", args):
        return
    _find_modules_here()
    config = parse([*args])
    report = config.output / "report.html"
    with folder_named(config.output, config.resume), locked(config.output):
        result = run(config, shlex.join(["branchprune", "run", *args]), console)
        if not report.exists():
            with unwritable_named(config.output):
                write_report(config.output)
    show_summary(result, console)
    console.print(f"{report}", style="bold", markup=False, soft_wrap=True)


def _dense(args: Sequence[str], console: Console) -> None:
    from branchprune.experiments.locks import locked
    from branchprune.experiments.run.config import parse
    from branchprune.experiments.run.experiment import train_dense

    if _asks_for_help("dense", args):
        return
    _find_modules_here()
    config = parse([*args])
    with folder_named(config.output, config.resume), locked(config.output):
        train_dense(config, console)


def _asks_for_help(command: str, args: Sequence[str]) -> bool:
    """Show the help of a command with the options of a run, if it is asked for."""
    from branchprune.experiments.run.config import help_text

    if args and not {"-h", "--help"} & {*args}:
        return False
    print(help_text(command))
    return True


def _find_modules_here() -> None:
    """Let import paths of a configuration lead into the current folder."""
    sys.path.insert(0, str(Path.cwd()))


def _compare(args: Sequence[str], console: Console) -> int:
    from branchprune.experiments.compare.compare import compare
    from branchprune.experiments.jobs import shown
    from branchprune.reports.comparison import write_comparison

    _find_modules_here()
    compared = compare(args, console)
    if compared.results.lines:
        table, plots = write_comparison(compared.results, compared.output)
        paths = " ".join(shown(path, Path.cwd()) for path in plots)
        for text in (table, paths):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return int(compared.failed)


def _search(args: Sequence[str], console: Console) -> int:
    from branchprune.experiments.search.search import make_parser, search
    from branchprune.reports.search import write_search

    if not args or {"-h", "--help"} & {*args}:
        print(make_parser().format_help())
        return 0
    _find_modules_here()
    searched, folder = search(args, console)
    console.print(write_search(searched, folder), markup=False, highlight=False, soft_wrap=True)
    return int(searched.best is None)


def _report(args: Sequence[str], console: Console) -> None:
    if {"-h", "--help"} & {*args}:
        print(REPORT)
        return
    if len(args) != 1 or args[0].startswith("-"):
        raise PruneError(f"report takes one folder, not {args}")
    from branchprune.reports.report import write_report

    console.print(f"{write_report(Path(args[0]))}", markup=False, soft_wrap=True)


def _plan(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.plan import main as plan

    _find_modules_here()
    plan(args, console)


def _compress(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.compress import main as compress

    _find_modules_here()
    compress(args, console)


def _export(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.export import main as export

    _find_modules_here()
    export(args, console)


def _show(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.show import main as show

    show(args, console)


def _collapse(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.collapse import main as collapse

    _find_modules_here()
    collapse(args, console)


def _sensitivity(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.sensitivity import main as sensitivity

    _find_modules_here()
    sensitivity(args, console)


def _bench(args: Sequence[str], console: Console) -> None:
    from branchprune.cli.bench import main as bench

    _find_modules_here()
    bench(args, console)


def _cost(args: Sequence[str], console: Console) -> None:
    from branchprune.benchmarks.cost import main as cost

    cost(args, console)


def _zoo(args: Sequence[str], console: Console) -> int:
    from branchprune.benchmarks.zoo import main as zoo

    return zoo(args, console)


COMMANDS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    **{"run": _run, "dense": _dense, "compare": _compare, "search": _search, "report": _report},
    **{"plan": _plan, "compress": _compress, "export": _export, "sensitivity": _sensitivity},
    **{"collapse": _collapse, "show": _show},
    **{"bench": _bench, "cost": _cost, "zoo": _zoo},
}


def show_summary(result: dict[str, Any], console: Console) -> None:
    """Print the table that ends a run: dense against small, as in the report.

    Where it does not fit, what is in a row stands below its label.
    """
    from branchprune.reports.before_after import compare

    dry = ", a dry run: two batches an epoch" if result.get("fast") else ""
    title = f"{result['experiment']}, seed {result['seed']}{dry}"
    rows = [(row.label, row.before, row.after, row.change) for row in compare(result)]
    error = f"{result['collapse']['relative_error']:.1e}"
    rows.append(("Error of the collapse, float64", "", error, ""))
    table = _table(title, ("dense", "small", "change"), rows)
    wide = console.options.update(width=1000)
    if console.measure(table, options=wide).minimum <= console.width:
        console.print(table)
        _show_files(result, console)
        return
    console.print(title, style="bold", highlight=False, markup=False)
    for label, before, after, change in rows:
        values = f"{before} → {after}" if before else after
        text = f"{label}\n  {values}{change and f' ({change})'}"
        console.print(text, highlight=False, markup=False)
    _show_files(result, console)


def _show_files(result: dict[str, Any], console: Console) -> None:
    """Print the table of the files of a run in their runtime, if it wrote some."""
    from branchprune.reports.in_runtime import in_runtime

    found = in_runtime(result)
    if found is not None:
        rows = [(label, *texts) for label, _, texts in found.rows]
        console.print(_table(f"In {found.title}", found.columns, rows))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column holds labels."""
    table = Table(title=escape(title))
    table.add_column()
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table

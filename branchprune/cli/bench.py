"""The command that times a small model beside its dense one, or measures what blending costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from branchprune.benchmarks.bench import Options, bench, check_writable, write_result
from branchprune.benchmarks.beside_dense import (
    BesideDense,
    Size,
    beside_dense,
    in_ms,
    in_threads,
    size_of,
)
from branchprune.blending.attach import attach
from branchprune.cli.model_and_images import warnings_in_a_line
from branchprune.cli.named_model import CHECKPOINT, INIT_ARGS, MODEL, build, dense_of, named
from branchprune.cli.plan import EXAMPLE, given_example
from branchprune.collapsing.collapse import collapse
from branchprune.errors import PruneError, positive, whole
from branchprune.experiments import environment
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.graph.inputs import Example, tensors
from branchprune.planning.plan import plan
from branchprune.runtimes.batch import batch_of, of_batch
from branchprune.runtimes.latency import Latency, step_latency
from branchprune.runtimes.named import RUNTIMES, runtime_of
from branchprune.runtimes.runtime import Runtime

ABOUT = """With MODEL: time it in a runtime on this machine, beside the dense model that it was made
from, both in turns, and compare how much faster it is with how many multiply-adds are gone. Without
MODEL: measure what blending costs and what the collapse saves, on VGG-16."""
VGG = Options()
ALONE = ("repeats", "image_size", "record")
"""Options of the measurement without a model."""
OF_MODEL = ("runtime", "seconds", "multiple_of", "example", "init_args", "checkpoint")
"""Those of one with a model."""
SECONDS = 2.0


def main(args: Sequence[str], console: Console) -> None:
    """Time a model, or measure what blending costs, and print a table.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built or run in the runtime.
    """
    options = parsed(_parser(), args)
    for name in ("threads", "batch", "multiple_of", "repeats", "image_size"):
        if options[name] is not None:
            whole(name, options[name], 1)
    _check_belonging(options)
    if options.model is None:
        names = ("image_size", "keep", "repeats", "threads", "output", "record")
        given = {name: options[name] for name in names} | {"batch_size": options.batch}
        bench(Options(**{key: each for key, each in given.items() if each is not None}), console)
        return
    if options.seconds is not None:
        positive("seconds", options.seconds)
    if options.output is not None:
        check_writable(options.output)
    _time_model(options, console)


def _check_belonging(options: Namespace) -> None:
    """Raise PruneError for an option that is of the measurement that is not asked for."""
    others: tuple[str, ...] = OF_MODEL
    told = "belongs to a model: name it, branchprune bench MODEL"
    if options.model is not None:
        others, told = (ALONE, "belongs to bench without MODEL: leave one of both out")
    for name in others:
        if options[name]:
            raise PruneError(f"{name} (={options[name]!r}) {told}")


def _time_model(options: Namespace, console: Console) -> None:
    runtime = runtime_of(options.runtime or "pytorch", options.threads)
    assert runtime is not None, "it has a name"
    dense, small, example = _models(options)
    seconds = options.seconds or SECONDS
    batch = batch_of(example)
    with console.status(f"timing in {runtime.name}"), warnings_in_a_line():
        steps = [runtime.prepared(each, example) for each in (dense, small) if each is not None]
        size = size_of(dense, example)
        found: BesideDense | Latency
        if small is None:
            found = step_latency(steps[0], batch, seconds)
        else:
            sizes = (size, size_of(small, example))
            found = beside_dense((steps[0], steps[1]), sizes, batch, seconds)
    where = _where(runtime, example)
    kind = type(dense).__name__
    console.print(_table(f"{kind}, {where}", found, size), highlight=False)
    if isinstance(found, BesideDense):
        text = f"{found}"
    else:
        text = "it is dense: give --keep 0.5 to time what that would make of it, beside it"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if options.output is not None:
        measured = {
            "model": kind,
            "runtime": runtime.name,
            "version": runtime.version(),
            "threads": runtime.threads,
            "batch": batch,
            "inputs": [[*each.shape] for each in tensors(example)],
            "found": asdict(found),
        }
        write_result(options.output, measured)


def _models(options: Namespace) -> tuple[nn.Module, nn.Module | None, Example]:
    """Return the dense model, the small one if there is one, and an example.

    Raises:
        PruneError: They cannot be built, or `keep` or `multiple_of` are of a model that is small.
    """
    origin, checkpoint = named(options.model, options.init_args or {}, options.checkpoint)
    model, shape = build(origin, checkpoint)
    given = given_example(options.example or [], shape)
    example = given if options.batch is None else of_batch(given, options.batch)
    dense = dense_of(model, origin)
    if dense is not None and options.keep is not None:
        raise PruneError(
            f"keep (={options.keep}) is what to time a dense model beside, and {options.model} is "
            "small: leave it out"
        )
    if options.keep is None and options.multiple_of is not None:
        raise PruneError(f"multiple_of (={options.multiple_of}) belongs to keep: give --keep 0.5")
    if dense is not None:
        return dense.eval(), model.eval(), example
    if options.keep is None:
        return model.eval(), None, example
    multiple = options.multiple_of or 1
    return model.eval(), cut(model, of_batch(given, 2), options.keep, multiple), example


def cut(model: nn.Module, example: Example, keep: float, multiple_of: int) -> nn.Module:
    """Return what a plan makes of a model without training.

    Args:
        model: The dense model.
        example: Its inputs, two of them.
        keep: Fraction of the channels to keep.
        multiple_of: What to round widths to.

    Raises:
        PruneError: It cannot be planned.
    """
    blended = attach(model, plan(model, example, keep, multiple_of=multiple_of))
    blended.alpha = 0.0
    return collapse(blended).eval()


def _where(runtime: Runtime, example: Example) -> str:
    """Return what a time is of: inputs, runtime, threads, machine."""
    inputs = " and ".join("×".join(map(str, each.shape)) for each in tensors(example))
    version, threads = runtime.version().partition("-")[0], in_threads(runtime.threads)
    return f"{inputs} in {runtime.name} {version}, {threads}, {environment.hardware('cpu')}"


def _table(title: str, found: BesideDense | Latency, dense: Size) -> Table:
    table = Table(title=escape(title))
    table.add_column("")
    for column in ("latency", "interquartile range", "multiply-adds", "parameters"):
        table.add_column(column, justify="right")
    if isinstance(found, Latency):
        table.add_row("dense", *_cells(found, dense))
        return table
    table.add_row("dense", *_cells(found.dense, found.dense_size))
    table.add_row("small", *_cells(found.small, found.small_size))
    params = found.dense_size.params / max(1, found.small_size.params)
    faster = found.faster
    ratios = (f"{faster.median:.2f}", f"{faster.low:.2f}–{faster.high:.2f}", f"{found.fewer:.2f}")
    table.add_row("dense / small", *ratios, f"{params:.2f}", style="bold")
    return table


def _cells(time: Latency, size: Size) -> tuple[str, ...]:
    return in_ms(time.median_s), in_ms(time.iqr_s or 0.0), f"{size.macs:,}", f"{size.params:,}"


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune bench", ABOUT)
    add = parser.add_argument
    add("model", type=str | None, nargs="?", default=None, help=MODEL)
    add(
        "--runtime",
        type=str | None,
        default=None,
        help=f"of MODEL: where it is timed, one of {', '.join(RUNTIMES)}; else pytorch",
    )
    add("--threads", type=int | None, default=None, help="of the processor; else one a core")
    batch = f"inputs in a run; else those of --example, or 1; of VGG-16, {VGG.batch_size}"
    add("--batch", type=int | None, default=None, help=batch)
    keep = f"""fraction of the channels to keep: of a MODEL that is dense, to time what that makes
    of it; of VGG-16, else {VGG.keep:g}"""
    add("--keep", type=float | None, default=None, help=keep)
    add("--multiple_of", type=int | None, default=None, help="of --keep: what to round widths to")
    seconds = f"of MODEL: how long to time, five runs of each at least; else {SECONDS:g}"
    add("--seconds", type=float | None, default=None, help=seconds)
    add("--example", action="append", default=[], metavar="SHAPE", help=f"of MODEL: {EXAMPLE}")
    init_args = f"of MODEL: {INIT_ARGS}"
    add("--init_args", type=dict[str, Any], default={}, help=init_args)
    checkpoint = f"of MODEL: {CHECKPOINT}"
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=checkpoint)
    images = f"of VGG-16: height and width of an image; else {VGG.image_size}"
    add("--image_size", type=int | None, default=None, help=images)
    repeats = f"of VGG-16: pairs of measurements; else {VGG.repeats}"
    add("--repeats", type=int | None, default=None, help=repeats)
    add("--output", type=Path | None, default=None, metavar="FILE", help="result as JSON")
    add("--record", action="store_true", help=f"of VGG-16: {environment.RECORD_HELP}")
    return parser

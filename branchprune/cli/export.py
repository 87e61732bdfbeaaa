"""The command that writes a model into a file for the runtime that it is to run in."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console
from torch import nn

from branchprune.artifacts.export import TOLERANCE, check_free, checked_options, export
from branchprune.artifacts.export_formats import FORMATS, format_named, format_of, table
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.file_format import FileFormat
from branchprune.artifacts.origin import Origin
from branchprune.benchmarks.beside_dense import beside_dense, in_ms, size_of
from branchprune.cli.model_and_images import warnings_in_a_line
from branchprune.cli.model_file import is_file
from branchprune.cli.named_model import CHECKPOINT, MODEL, build, dense_of, named
from branchprune.cli.plan import EXAMPLE, given_example
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import DYNAMIC, batch_of, of_batch
from branchprune.runtimes.latency import Latency, step_latency
from branchprune.runtimes.onnx_model import OLDEST, OPSET
from branchprune.runtimes.runtime import Step, threads_of

ABOUT = """Write a model into a file that runs without branchprune and without the model's source,
compare what it computes there with PyTorch, and time it: of a small model in turns with the dense
one that it comes from. A file that computes something else is named FILE.failed, and the exit
status is 1."""
OUTPUT = """file to write; without it, MODEL.suffix in this folder, or beside a file that is
exported"""
BATCH = "'dynamic' for any batch, or a number of examples"


class _Models(NamedTuple):
    """A model that is exported, and the dense one that it comes from; None: it is dense."""

    small: nn.Module
    dense: nn.Module | None


def main(args: Sequence[str], console: Console) -> None:
    """Export a model; print what was written, how well it agrees, and how long it takes.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built, exported or run.
    """
    options = parsed(_parser(), args)
    threads_of(options.threads)
    kind, output = _target(options)
    checked_options(kind, opset=options.opset)  # what is wrong is told before a model is made
    check_free(output, kind, options.overwrite)
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    model, example = _model_and_example(options, origin, checkpoint)
    models = _Models(model, dense_of(model, origin))
    with console.status(f"exporting to {kind.title}"), warnings_in_a_line():
        written = export(
            model,
            example,
            output,
            format=kind.name,
            batch=options.batch,
            opset=options.opset,
            tolerance=options.tolerance,
            overwrite=options.overwrite,
            made_by=origin.made_by,
            init_args=origin.init_args,
        )
    with console.status(f"timing it in {kind.runs_in}"), warnings_in_a_line():
        times = _times(written, kind, models, example, options)
    console.print(f"{written}\n{times}", markup=False, highlight=False, soft_wrap=True)


def _target(options: Namespace) -> tuple[FileFormat, Path]:
    """Return the format that is asked for, and the file to write."""
    output: Path | None = options.output
    if output is not None:
        return format_of(output, options.format, "output"), output
    if options.format is None:
        raise PruneError(
            f"format is missing: give one of {', '.join(FORMATS)}, --format onnx, or a file, "
            "--output small.onnx"
        )
    kind = format_named(options.format)
    if is_file(options.model):
        return kind, Path(options.model).with_suffix(kind.suffix)
    name = options.model.rpartition(":")[2].rpartition("/")[2]
    return kind, Path(f"{name}{kind.suffix}")


def _model_and_example(
    options: Namespace, origin: Origin, checkpoint: Path | None
) -> tuple[nn.Module, Example]:
    model, shape = build(origin, checkpoint)
    if checkpoint is None and shape is not None:
        print(
            f"branchprune: warning: the weights of {options.model} are random: give its trained "
            "ones, --checkpoint FILE",
            file=sys.stderr,
        )
    return model, given_example(options.example, shape)


def _times(
    written: Exported, kind: FileFormat, models: _Models, example: Example, options: Namespace
) -> str:
    """Return how long the runtime takes for the file, and for the dense model if there is one.

    That is at a batch of 1 where the file takes any.
    """
    batch = 1 if written.batch == DYNAMIC else written.batch
    given = of_batch(example, batch) if batch_of(example) != batch else example
    step = kind.runtime(options.threads).opened(written.path, written.path.name)(given)
    if models.dense is None:
        found, beside = step_latency(step, batch), ""
    else:
        found, beside = _beside_dense(step, kind, models.small, models.dense, given, options)
    many = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    return (
        f"latency: {in_ms(found.median_s)} at a batch of {batch} in {written.runtime}, "
        f"{written.precision}, {many} (median of {found.count}, interquartile range "
        f"{in_ms(found.iqr_s or 0.0)}){beside}"
    )


def _beside_dense(
    step: Step,
    kind: FileFormat,
    small: nn.Module,
    dense: nn.Module,
    example: Example,
    options: Namespace,
) -> tuple[Latency, str]:
    """Time a file in turns with one of the dense model, which is made for that and left nowhere.

    Args:
        step: What runs the file.
        kind: Its format.
        small: The model in it.
        dense: The model that it comes from.
        example: The inputs of both.
        options: Those that the file was made with.

    Returns:
        Its latency, and a line on that of the dense model, or why there is none.
    """
    batch, runtime = batch_of(example), kind.runtime(options.threads)
    given = {name: options[name] for name in ("batch", "opset", "tolerance")}
    with TemporaryDirectory() as folder:
        try:
            path = Path(folder) / f"dense{kind.suffix}"
            file = export(dense, example, path, format=kind.name, **given).path
            wide = runtime.opened(file, "the dense model")(example)
        except PruneError as error:
            told = str(error).replace(f"{folder}/", "")
            return step_latency(step, batch), f"\nnot beside the dense model: {told}"
        sizes = (size_of(dense, example), size_of(small, example))
        found = beside_dense((wide, step), sizes, batch)
    return found.small, f"\nin turns with {in_ms(found.dense.median_s)} of the dense model: {found}"


def _parser() -> ArgumentParser:
    parser = parser_of("branchprune export", ABOUT)
    parser.formatter_class = _Formatter
    parser.epilog = f"formats:\n{table()}"
    add = parser.add_argument
    add("model", type=str, help=MODEL)
    add("--format", type=str | None, default=None, help=f"one of {', '.join(FORMATS)}")
    add("--output", type=Path | None, default=None, metavar="FILE", help=OUTPUT)
    add("--batch", type=int | str, default=DYNAMIC, help=BATCH)
    add("--opset", type=int | None, default=None, help=f"of ONNX, {OLDEST} or above; else {OPSET}")
    add(
        "--tolerance",
        type=float | None,
        default=None,
        help=f"largest difference of an output, as part of the largest; else {TOLERANCE:g}",
    )
    add("--threads", type=int, default=1, help="of the processor, for the latency")
    add("--example", action="append", default=[], metavar="SHAPE", help=EXAMPLE)
    add("--init_args", type=dict[str, Any], default={}, help="arguments of what is imported")
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=CHECKPOINT)
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the table below the options."""

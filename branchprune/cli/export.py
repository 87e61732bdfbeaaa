"""The command that writes a model into a file for the runtime that it is to run in."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console
from torch import Tensor, nn

from branchprune.artifacts.export import HALF_TOLERANCE, export
from branchprune.artifacts.export_checks import checked_options
from branchprune.artifacts.export_files import check_free
from branchprune.artifacts.export_formats import FORMATS, format_named, format_of, table
from branchprune.artifacts.file_format import INT8, FileFormat
from branchprune.artifacts.origin import Origin
from branchprune.artifacts.parity import TOLERANCE
from branchprune.artifacts.quantization import SAMPLES
from branchprune.cli.export_latency import latency_text
from branchprune.cli.model_and_images import PREPARATION, add_preparation, warnings_in_a_line
from branchprune.cli.model_file import is_file
from branchprune.cli.named_model import CHECKPOINT, INIT_ARGS, MODEL, build, dense_of, named
from branchprune.cli.plan import EXAMPLE, given_example
from branchprune.cli.trained import trained
from branchprune.errors import PruneError
from branchprune.experiments.parsed import parsed, parser_of
from branchprune.few_images.compress import CHECKED
from branchprune.few_images.fitness import warn_if_strange
from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import DYNAMIC
from branchprune.runtimes.onnx_model import OLDEST, OPSET
from branchprune.runtimes.runtime import threads_of

ABOUT = """Write a model into a file that runs without branchprune and without the model's source,
compare what it computes there with PyTorch, and time it: of a small model in turns with the dense
one that it comes from. A file that computes something else is named FILE.failed, and the exit
status is 1."""
OUTPUT = """file to write; without it, MODEL.suffix in this folder, or beside a file that is
exported"""
BATCH = "'dynamic' for any batch, or a number of examples"
CALIBRATION = """folder of images for --quantize 8, without labels: some set ranges, others, up to
1000, judge what it costs; of a model of torchvision or timm its own weights are taken, if there is
no --checkpoint"""
QUANTIZE = """16 for weights in half precision; 8 for weights and activations in whole numbers, with
--calibration; else all are float32"""
MAX_DROP = """percent of images whose class may be another in 8 bits, or relative error of outputs,
in percent: where more are lost, the layers that cost most stay float32; else any"""


def main(args: Sequence[str], console: Console) -> None:
    """Export a model; print what was written, how well it agrees, and how long it takes.

    Raises:
        PruneError: An argument is wrong, or the model cannot be built, exported or run.
    """
    options = parsed(_parser(), args)
    threads_of(options.threads)
    kind, output = _target(options)
    # What is wrong is told before a model is made.
    checked_options(kind, opset=options.opset, quantize=options.quantize)
    _check_calibration(options)
    check_free(output, kind, options.overwrite)
    origin, checkpoint = named(options.model, options.init_args, options.checkpoint)
    model, example, calibration = _model_and_inputs(options, origin, checkpoint)
    dense = dense_of(model, origin)
    with console.status(f"exporting to {kind.title}"), warnings_in_a_line():
        written = export(
            model,
            example,
            output,
            format=kind.name,
            batch=options.batch,
            opset=options.opset,
            quantize=options.quantize,
            calibration=calibration,
            samples=options.samples,
            max_drop=options.max_drop,
            tolerance=options.tolerance,
            overwrite=options.overwrite,
            made_by=origin.made_by,
            init_args=origin.init_args,
        )
    with console.status(f"timing it in {kind.runs_in}"), warnings_in_a_line():
        times = latency_text(written, kind, model, dense, example, options)
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


def _check_calibration(options: Namespace) -> None:
    """Raise PruneError for options of images without a folder of them, and the other way round."""
    folder, bits = options.calibration, options.quantize
    if bits == INT8 and folder is None:
        raise PruneError(
            "quantize (=8): ranges are set on images: give a folder of them, --calibration FOLDER"
        )
    if bits != INT8 and folder is not None:
        raise PruneError(f"calibration (={str(folder)!r}) is for --quantize 8")
    given = [x for x in PREPARATION if options[x] is not None and options[x] is not False]
    if folder is None and given:
        raise PruneError(
            f"{given[0]} (={options[given[0]]}) says how images are read: give --calibration"
        )
    if folder is not None and options.example:
        raise PruneError(
            f"example (={options.example[0]!r}): an image of --calibration is the example: leave "
            "it out"
        )


def _model_and_inputs(
    options: Namespace, origin: Origin, checkpoint: Path | None
) -> tuple[nn.Module, Example, Tensor | None]:
    """Return the model, an example, and the images on which it is rounded."""
    if options.calibration is not None:
        model, known = trained(origin, checkpoint)
        wanted = known.but(options.image_size, options.mean, options.std)
        images = wanted.read(options.calibration, options.grey)
        with warnings_in_a_line(), suppress(Exception):  # what it does not take is told later
            warn_if_strange(model, images[:CHECKED])
        return model, images[:1], images
    model, shape = build(origin, checkpoint)
    if checkpoint is None and shape is not None:
        print(
            f"branchprune: warning: the weights of {options.model} are random: give its trained "
            "ones, --checkpoint FILE",
            file=sys.stderr,
        )
    return model, given_example(options.example, shape), None


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
    add("--quantize", type=int | None, default=None, help=QUANTIZE)
    add("--calibration", type=Path | None, default=None, metavar="FOLDER", help=CALIBRATION)
    add("--samples", type=int, default=SAMPLES, help="images that set ranges; at most half")
    add("--max_drop", type=float | None, default=None, help=MAX_DROP)
    add(
        "--tolerance",
        type=float | None,
        default=None,
        help=f"largest difference of an output, as part of the largest; else {TOLERANCE:g}, with "
        f"weights of 16 bits {HALF_TOLERANCE:g}",
    )
    add_preparation(parser)
    add("--threads", type=int, default=1, help="of the processor, for the latency")
    add("--example", action="append", default=[], metavar="SHAPE", help=EXAMPLE)
    add("--init_args", type=dict[str, Any], default={}, help=INIT_ARGS)
    add("--checkpoint", type=Path | None, default=None, metavar="FILE", help=CHECKPOINT)
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the table below the options."""

"""How long an exported file takes in its runtime, in turns with the dense model it comes from."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from jsonargparse import Namespace
from torch import nn

from branchprune.artifacts.export import export
from branchprune.artifacts.exported import Exported
from branchprune.artifacts.file_format import FileFormat
from branchprune.benchmarks.beside_dense import beside_dense, in_ms, in_threads, size_of
from branchprune.errors import PruneError
from branchprune.graph.inputs import Example
from branchprune.runtimes.batch import DYNAMIC, batch_of, of_batch
from branchprune.runtimes.latency import Latency, step_latency
from branchprune.runtimes.runtime import Step


def latency_text(
    written: Exported,
    kind: FileFormat,
    model: nn.Module,
    dense: nn.Module | None,
    example: Example,
    options: Namespace,
) -> str:
    """Return how long the runtime takes for the file, and beside it for the dense model, as a text.

    That is at a batch of 1 where the file takes any.

    Args:
        written: The file.
        kind: Its format.
        model: The model in it.
        dense: The dense model that it comes from; None: it is dense itself.
        example: An input of both.
        options: Those that the file was made with.

    Raises:
        PruneError: The runtime cannot run the file.
    """
    batch = 1 if written.batch == DYNAMIC else written.batch
    given = of_batch(example, batch) if batch_of(example) != batch else example
    step = kind.runtime(options.threads).opened(written.path, written.path.name)(given)
    if dense is None:
        found, beside = step_latency(step, batch), ""
    else:
        found, beside = _beside_dense(step, kind, model, dense, given, options)
    threads = in_threads(options.threads)
    numbers = written.precision if written.quantized is None else f"INT8 and {written.precision}"
    return (
        f"latency: {in_ms(found.median_s)} at a batch of {batch} in {written.runtime}, "
        f"{numbers}, {threads} (median of {found.count}, interquartile range "
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
    wide_numbers = " in float32" if options.quantize else ""
    return found.small, (
        f"\nin turns with {in_ms(found.dense.median_s)} of the dense model{wide_numbers}: {found}"
    )

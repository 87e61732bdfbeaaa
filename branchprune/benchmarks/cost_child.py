"""One measurement of `branchprune cost`, in a process of its own that does nothing else.

`python -m branchprune.benchmarks.cost_child '<a Row as JSON>'` prints the row, filled in, as a line
of JSON. The model is built at its own widths and read from a file, so that a process that measures
a small model has never held the dense one. What opens files (ONNX Runtime, OpenVINO) opens one that
another process has written: in this one PyTorch never has the weights.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.artifacts.export_formats import FORMATS
from branchprune.artifacts.file_format import FileFormat
from branchprune.artifacts.serialization import load
from branchprune.benchmarks.child import forget_peak, give_memory_back, one_line, resident
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.models import VGG, Autoencoder
from branchprune.planning.profiling import count_params
from branchprune.runtimes.in_runtime import in_tensors
from branchprune.runtimes.latency import measure_latency, step_latency
from branchprune.runtimes.named import RUNTIMES

CLASSES: Mapping[str, type[nn.Module]] = {"VGG": VGG, "Autoencoder": Autoencoder}
CUDA_GRAPHS = "cuda-graphs"
TINY, TINY_INPUT = "tiny", (1, 3, 8, 8)
SETTINGS = 13
"""So many fields of a row, the first, say what was measured; the others say what was found."""


@dataclass
class Row:
    """One measurement: what is measured, and what was found; None where there is no such thing.

    Attributes:
        model: Name of the model.
        variant: dense, small, or small with widths that are multiples of 8.
        device: cpu or cuda.
        batch: Images a batch.
        runtime: What runs it, by its name in `RUNTIMES`, or cuda-graphs (torch.compile with them).
        repeat: Number of the repetition.
        threads: Threads that torch uses.
        seconds: How long latency was measured.
        hardware: GPU and processor.
        torch: Version of torch.
        cls: Name of the model's class.
        arguments: The class's arguments, with the widths.
        shape: Shape of one image.
        error: Why nothing was measured, or None.
        params: Parameters.
        weights_bytes: Parameters and buffers.
        input_bytes: The batch.
        median_s: Median time of one batch, in seconds.
        iqr_s: Interquartile range of that time within this process.
        baseline_bytes: CPU: resident memory before the model was built, with everything loaded
            that running (and compiling) some other model loads.
        peak_bytes: CPU: peak of resident memory in three passes, the first of which compiles; in
            a runtime that opens files, while it opens the file, too: it lays weights out anew as it
            does. Pages of a file that is mapped into memory count as far as they are read.
        growth_bytes: CPU: peak minus baseline.
        memory_method: CPU: VmHWM, the peak after the model was loaded, or ru_maxrss, that of the
            whole life of the process.
        allocated_bytes: GPU: peak of torch's allocator, from before the first pass on.
        reserved_bytes: GPU: peak of what the allocator took from the GPU.
        activations_bytes: GPU: peak of the allocator without weights and input; what cuDNN and
            cuBLAS work in is part of it.
        load: Load average of the machine when the measurement ended.
        versions: Versions of what matters.
        commit: Commit of the checkout.
    """

    model: str
    variant: str
    device: str
    batch: int
    runtime: str
    repeat: int
    threads: int
    seconds: float
    hardware: str
    torch: str
    cls: str
    arguments: dict[str, Any]
    shape: list[int]
    error: str | None = None
    params: int | None = None
    weights_bytes: int | None = None
    input_bytes: int | None = None
    median_s: float | None = None
    iqr_s: float | None = None
    baseline_bytes: int | None = None
    peak_bytes: int | None = None
    growth_bytes: int | None = None
    memory_method: str | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    activations_bytes: int | None = None
    load: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None

    @property
    def key(self) -> str:
        """What was measured, as JSON."""
        return json.dumps(list(asdict(self).values())[:SETTINGS])

    @property
    def memory(self) -> int | None:
        """The bytes to compare: what the process grew by, or the peak of the GPU's allocator."""
        return self.growth_bytes if self.device == "cpu" else self.allocated_bytes


def measure(row: Row, file: Path) -> None:
    """Fill in a row.

    Args:
        row: What to measure; it is changed.
        file: The model's weights, as written by `branchprune.save`; for a runtime that opens files,
            the file for it, beside one with the same suffix of some other model, tiny.

    Raises:
        PruneError: The weights do not fit, the file cannot be run, or the outputs are not ordinary
            numbers.
    """
    torch.set_num_threads(row.threads)
    (_measure_model if file_format(row.runtime) is None else _measure_file)(row, file)


def _measure_model(row: Row, file: Path) -> None:
    if row.device == "cpu":
        _load_code(row.runtime)
        row.baseline_bytes = resident("VmRSS")
    model = load(CLASSES[row.cls](**row.arguments), file).eval().to(row.device)
    x = _images(row).to(row.device)
    _note_sizes(row, model, x)
    run = compiled(model, row.runtime)
    if row.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        row.memory_method = forget_peak()
    with torch.inference_mode():
        for _ in range(3):  # compiles, warms up, records the graphs; outputs are freed at once
            run(x)
        (_gpu_memory if row.device == "cuda" else _cpu_memory)(row)
        check_numbers("the output", run(x))
    latency = measure_latency(run, x, row.seconds)
    row.median_s, row.iqr_s = latency.median_s, latency.iqr_s


def _measure_file(row: Row, file: Path) -> None:
    kind = file_format(row.runtime)
    assert kind is not None, "there is a file of it"
    with torch.device("meta"):
        _note_sizes(row, CLASSES[row.cls](**row.arguments), torch.empty(row.batch, *row.shape))
    runtime = kind.runtime(row.threads)
    runtime.opened(file.with_name(f"{TINY}{kind.suffix}"), TINY)(torch.randn(TINY_INPUT))()
    give_memory_back()
    row.baseline_bytes, row.memory_method = resident("VmRSS"), forget_peak()
    x = _images(row)
    step = runtime.opened(file, file.name)(x)
    for _ in range(3):
        step()
    _cpu_memory(row)
    for output in in_tensors(step()):
        check_numbers("the output", output)
    latency = step_latency(step, row.batch, row.seconds)
    row.median_s, row.iqr_s = latency.median_s, latency.iqr_s


def file_format(runtime: str) -> FileFormat | None:
    """Return the format of the files that a runtime opens; None: it runs a model as it is."""
    if runtime not in RUNTIMES or runtime == "pytorch":
        return None
    runs: object = RUNTIMES[runtime]
    return next((each for each in FORMATS.values() if each.runtime is runs), None)


def tiny() -> nn.Module:
    """Return a model that loads what running any model loads."""
    return VGG([[4]]).eval()


def _images(row: Row) -> Tensor:
    return torch.randn(row.batch, *row.shape, generator=torch.Generator().manual_seed(0))


def _note_sizes(row: Row, model: nn.Module, x: Tensor) -> None:
    row.params, row.input_bytes = count_params(model), x.nbytes
    row.weights_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def _load_code(runtime: str) -> None:
    """Run a tiny model, so that what is loaded on first use does not count as the model's."""
    with torch.inference_mode():
        compiled(tiny(), runtime)(torch.randn(TINY_INPUT))
    torch.compiler.reset()
    give_memory_back()


def compiled(model: nn.Module, runtime: str) -> nn.Module:
    """Return a model as it is, through torch.compile, or through torch.compile and CUDA graphs."""
    if runtime == "pytorch":
        return model
    options = {"mode": "reduce-overhead"} if runtime == CUDA_GRAPHS else {}
    wrapped: nn.Module = torch.compile(model, **options)  # type: ignore[call-overload]
    return wrapped


def check_numbers(what: str, tensor: Tensor) -> None:
    """Raise an error if a tensor has numbers that are not finite, or so small that they slow down.

    Raises:
        PruneError: It has.
    """
    subnormal = (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)
    if not tensor.isfinite().all() or subnormal.any():
        raise PruneError(f"{what} has numbers that are not finite or not normal")


def _cpu_memory(row: Row) -> None:
    row.peak_bytes = resident(str(row.memory_method))
    row.growth_bytes = row.peak_bytes - (row.baseline_bytes or 0)


def _gpu_memory(row: Row) -> None:
    torch.cuda.synchronize()
    row.allocated_bytes = int(torch.cuda.max_memory_allocated())
    row.reserved_bytes = int(torch.cuda.max_memory_reserved())
    row.activations_bytes = row.allocated_bytes - (row.weights_bytes or 0) - (row.input_bytes or 0)


def main(row: Row, file: Path) -> None:
    """Measure and print the row; what goes wrong is recorded in it."""
    row.versions, row.commit = environment.versions(), environment.commit()
    try:
        measure(row, file)
    except Exception as error:  # a compiler can fail in any way
        row.error = one_line(f"{type(error).__name__}: {error}")
    row.load = os.getloadavg()[0]
    print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main(Row(**json.loads(sys.argv[1])), Path(sys.argv[2]))

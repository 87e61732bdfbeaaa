"""What a dense model and its pruned counterpart cost: time an image, and memory.

The widths are those of the paper (table 1, figure 5): each convolution keeps 22/64 of its channels.
A third variant rounds the widths to multiples of 8. Numbers are float32 with torch's defaults (TF32
in convolutions on a GPU).

Each measurement has a process of its own (`branchprune.benchmarks.cost_child`). Dense and small
take turns, and small models are compared with the dense one of the same turn. Memory is, on a CPU,
what the process grows by from before the model is built, or from before its file is opened by what
opens files (torch.compile on a CPU: with what compiling it took; ONNX Runtime and others: with what
opening took), and on a GPU the peak of torch's allocator.

Options come from YAML files, the later of which override the earlier, and from the command line:

    branchprune cost configs/cost.yaml --variant cpu --output runs/cost.json
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import OpenUnitInterval, PositiveFloat, PositiveInt
from rich.console import Console

from branchprune.benchmarks.child import one_line, parse, run_child
from branchprune.benchmarks.cost_child import CUDA_GRAPHS, Row, file_format
from branchprune.benchmarks.cost_models import MODELS, VARIANTS, prepare, write_file
from branchprune.benchmarks.cost_table import summarize, table
from branchprune.benchmarks.options import options_parser
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.files import append_line, parse_lines, write_whole
from branchprune.experiments.parsed import parsed
from branchprune.runtimes.named import RUNTIMES

ABOUT = "Measure time and memory of the paper's networks, dense and small, on this machine."


@dataclass
class Options:
    """Options of `branchprune cost`.

    Args:
        models: What to measure.
        devices: cpu, cuda; auto: cpu, and cuda if there is one.
        cpu_batches: Images a batch on the CPU.
        cuda_batches: Images a batch on the GPU.
        runtime: What runs them: pytorch, torch-compile, on the GPU alone cuda-graphs, and on the
            CPU alone onnxruntime and others that open files; one, or a list of them. auto: all
            that are installed.
        keep: Fraction of the channels to keep.
        repeats: Processes a model, variant, device, batch and runtime.
        seconds: How long each measures.
        threads: Threads; 0: as many as torch chooses.
        timeout: Seconds that a process may take.
        output: File for the result; each measurement is also added to its .jsonl at once, and
            what succeeded there is not measured again.
        record: Write it to the committed results instead.
    """

    models: list[Literal["vgg16", "autoencoder"]] = field(
        default_factory=lambda: ["vgg16", "autoencoder"]
    )
    devices: Literal["auto"] | list[Literal["cpu", "cuda"]] = "auto"
    cpu_batches: list[PositiveInt] = field(default_factory=lambda: [1, 64])
    cuda_batches: list[PositiveInt] = field(default_factory=lambda: [1, 512])
    runtime: list[str] | str = "auto"
    keep: OpenUnitInterval = 22 / 64
    repeats: PositiveInt = 5
    seconds: PositiveFloat = 1.0
    threads: int = 0
    timeout: PositiveFloat = 900
    output: Path = Path("runs/cost.json")
    record: bool = False


def main(args: Sequence[str], console: Console) -> None:
    """Measure what is not yet measured, write the result and print a table.

    Args:
        args: Arguments of `branchprune cost`, the first of which may be YAML files.
        console: Where progress is shown.

    Raises:
        PruneError: An option is wrong, there is no GPU, or the output cannot be written.
    """
    try:
        options = parse_options(args)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(options, Path(folder), console)
        write(options, rows, shlex.join(["branchprune", "cost", *args]))
    except OSError as error:
        raise PruneError(f"output {options.output} cannot be written: {error}") from error
    console.print(table(rows))


def parse_options(args: Sequence[str]) -> Options:
    """Return the options that YAML files, which come first, and the command line give.

    Raises:
        PruneError: A file or an option is wrong; it is named.
    """
    parser = options_parser(
        "branchprune cost", Options, description=ABOUT, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    found = vars(parsed(parser, files_as_options(args)))
    options = Options(**{key: value for key, value in found.items() if key != "config"})
    return replace(options, output=environment.recorded("cost.json")) if options.record else options


def measure(options: Options, folder: Path, console: Console) -> list[Row]:
    """Return all rows that the options name, measured now or earlier.

    Args:
        options: What to measure.
        folder: An empty folder for the models.
        console: Where progress is shown.
    """
    devices, runtimes = _devices(options), _runtimes(options)
    arguments = {str(name): prepare(name, options.keep, folder) for name in options.models}
    blank = [*_blank_rows(options, product(devices, runtimes), arguments)]
    log = options.output.with_suffix(".jsonl")
    known = read_rows(log)
    todo = [row for row in blank if row.key not in known or known[row.key].error]
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{len(blank) - len(todo)} measurements are done, {len(todo)} to do")
    for i, row in enumerate(todo, 1):
        found = _measured(row, folder, options.timeout)
        known[row.key] = found
        append_line(log, asdict(found))
        time = found.error or f"{1e3 * (found.median_s or 0) / found.batch:.3f} ms an image"
        what = f"{row.model}, {row.variant}, {row.device}, batch {row.batch}, {row.runtime}"
        say(f"{i}/{len(todo)} {what}: {time}")
    return [known[row.key] for row in blank]


def _measured(row: Row, folder: Path, timeout: float) -> Row:
    """Return what is measured; of a model that cannot be exported, why that is."""
    try:
        file = write_file(row, folder)
    except PruneError as error:
        return replace(row, error=one_line(str(error)))
    return run_apart(row, file, timeout)


def _devices(options: Options) -> list[str]:
    for name in ("models", "devices", "cpu_batches", "cuda_batches", "runtime"):
        value = getattr(options, name)
        if isinstance(value, list) and (not value or len({*value}) < len(value)):
            raise PruneError(f"{name} (={value}) must name something, and nothing twice")
    if options.threads < 0:
        raise PruneError(f"threads (={options.threads}) must be at least 0")
    if options.devices == "auto":
        return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if "cuda" in options.devices and not torch.cuda.is_available():
        raise PruneError("devices names cuda, but torch finds no GPU")
    return [*options.devices]


def _runtimes(options: Options) -> list[str]:
    """Return the names of what runs models.

    Raises:
        PruneError: One is not known, or its package is missing.
    """
    known = ["pytorch", "torch-compile", CUDA_GRAPHS]
    known += [name for name in RUNTIMES if name not in known]
    if options.runtime == "auto":
        return [name for name in known if _is_installed(name)]
    asked = [options.runtime] if isinstance(options.runtime, str) else [*options.runtime]
    for name in asked:
        if name not in known:
            raise PruneError(f"runtime (={name!r}) must be one of {', '.join(known)}")
        _check_installed(name)
    return asked


def _check_installed(runtime: str) -> None:
    if runtime in RUNTIMES:
        RUNTIMES[runtime](None)
    if (kind := file_format(runtime)) is not None:
        kind.check_installed()


def _is_installed(runtime: str) -> bool:
    with suppress(PruneError):
        _check_installed(runtime)
        return True
    return False


def _runs_on(runtime: str, device: str) -> bool:
    """Return whether a runtime runs models on a device: files are run by the processor."""
    if device == "cpu":
        return runtime != CUDA_GRAPHS
    return file_format(runtime) is None


def _blank_rows(
    options: Options,
    places: Iterable[tuple[str, str]],
    arguments: dict[str, dict[str, dict[str, Any]]],
) -> Iterator[Row]:
    """Yield the rows in the order in which they are measured, with nothing measured yet."""
    hardware, threads = environment.hardware(), options.threads or torch.get_num_threads()
    for name, (device, runtime) in product(options.models, places):
        if not _runs_on(runtime, device):
            continue
        batches = options.cpu_batches if device == "cpu" else options.cuda_batches
        for batch, repeat in product(batches, range(options.repeats)):
            for variant in [*VARIANTS][:: -1 if repeat % 2 else 1]:
                yield Row(
                    *(name, variant, device, batch, runtime, repeat, threads, options.seconds),
                    *(hardware, torch.__version__, MODELS[name][0], arguments[name][variant]),
                    [*MODELS[name][2]],
                )


def run_apart(row: Row, file: Path, timeout: float) -> Row:
    """Measure in a process of its own, for some seconds; return what was found, or the error."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if row.device == "cpu" else {}
    module = ["-W", "ignore", "-m", "branchprune.benchmarks.cost_child"]
    lines, error = run_child([*module, json.dumps(asdict(row)), str(file)], timeout, hidden)
    for line in lines:
        if (found := parse(line, Row)) is not None:
            return found
    return Row(**asdict(row) | {"error": error or "the process printed nothing"})


def read_rows(log: Path) -> dict[str, Row]:
    """Return the last row of every measurement in a file of JSON lines."""
    return {row.key: row for row in parse_lines(log, partial(parse, kind=Row))}


def write(options: Options, rows: Sequence[Row], command: str) -> None:
    """Write the result as JSON, at one stroke.

    Args:
        options: What was measured; `output` is the file.
        rows: What was found.
        command: The command line, for the result.
    """
    content = {
        "command": command,
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "options": {k: v for k, v in asdict(options).items() if k not in ("output", "record")},
        "summary": [asdict(line) for line in summarize(rows)],
        "rows": [asdict(row) for row in rows],
    }
    write_whole(options.output, json.dumps(content, indent=1) + "\n")

"""What blending costs and what the collapse saves, as ratios within one run.

Absolute times depend on the machine and on what else it does, so each comparison alternates
between its two sides and reports the median of the ratios.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from branchprune.blending.attach import attach
from branchprune.blending.blended import Blended
from branchprune.collapsing.collapse import collapse
from branchprune.experiments import environment
from branchprune.experiments.files import refusals_named, write_whole
from branchprune.graph.macs_counter import MacsCounter
from branchprune.models import VGG
from branchprune.planning.plan import plan
from branchprune.runtimes.latency import in_turns, quartiles
from branchprune.runtimes.runtime import Step


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: What is compared with what.
        value: Median of the measured ratios, or seconds.
        low: Lower quartile.
        high: Upper quartile.
        target: What it should be.
    """

    what: str
    value: float
    low: float
    high: float
    target: str


@dataclass
class Options:
    """What `branchprune bench` measures without a model of the user's.

    Args:
        batch_size: Images a batch.
        image_size: Height and width of an image.
        keep: Fraction of the channels to keep.
        repeats: Pairs of measurements.
        threads: Threads; 0: as many as torch chooses.
        output: File for the result as JSON.
        record: Write it to the committed results instead.
    """

    batch_size: int = 64
    image_size: int = 32
    keep: float = 22 / 64
    repeats: int = 9
    threads: int = 0
    output: Path | None = None
    record: bool = False


def bench(options: Options, console: Console) -> None:
    """Measure VGG-16 on the CPU, or on the GPU if there is one, and print a table.

    Raises:
        PruneError: The result cannot be written.
    """
    output = environment.recorded("bench.json") if options.record else options.output
    if output is not None:
        check_writable(output)  # not found out after minutes
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = measure(options, console)
    table = Table(title=f"VGG-16, batch {options.batch_size}, {environment.hardware()}")
    for column in ("what", "median", "quartiles", "target"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(row.what, f"{row.value:.3f}", f"{row.low:.3f}–{row.high:.3f}", row.target)
    console.print(table)
    if output is not None:
        given = {k: v for k, v in asdict(options).items() if k not in ("output", "record")}
        threads = {"threads": torch.get_num_threads()}
        write_result(output, threads | {"options": given, "rows": [asdict(row) for row in rows]})


def check_writable(output: Path) -> None:
    """Make the folder of a result and the file in it, if they are not there.

    Raises:
        PruneError: They cannot be made.
    """
    with refusals_named():
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()


def write_result(output: Path, found: Mapping[str, Any]) -> None:
    """Write what was found as JSON, with what it was found with.

    Raises:
        PruneError: The file cannot be written.
    """
    content = {
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "commit": environment.commit(),
        **found,
    }
    with refusals_named():
        write_whole(output, json.dumps(content, indent=1) + "\n")


def measure(options: Options, console: Console) -> list[Row]:
    """Return all measurements."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VGG().to(device)
    x = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    y = torch.randint(10, (options.batch_size,), device=device)
    blended = attach(model, plan(model, x[:1], options.keep))
    rows = []
    dense_step, dense_macs = _training_step(model, x, y)
    for alpha, target in ((0.5, "≤ 1.3"), (0.0, "≤ 1.2")):
        blended.alpha = alpha
        step, macs = _training_step(blended, x, y)
        console.print(f"training step at α = {alpha:g} …", highlight=False)
        times = ratios(step, dense_step, options.repeats, device)
        rows.append(_row(f"training step at α = {alpha:g} / dense", times, ""))
        wide = _macs_as_defined(blended, x, y) / dense_macs
        predicted = [t / wide for t in times]
        rows.append(_row(f"… / what its MACs predict ({wide:.2f}x the dense)", predicted, target))
        if alpha == 0:
            done = macs / dense_macs
            rows.append(
                _row(
                    f"… / the MACs left after folding ({done:.2f}x)", [t / done for t in times], ""
                )
            )
    blended.alpha = 0.0
    small = collapse(blended).eval()
    console.print("collapsed against built at its widths …")
    rows.append(_collapsed_row(small, x, options.repeats, device))
    console.print("dense against collapsed …")
    rows.append(_speedup_row(model, small, x, options.repeats, device))
    console.print("plan + attach + collapse …")
    seconds = [_pipeline_seconds(x[:1], options.keep) for _ in range(3)]
    rows.append(_row("plan + attach + collapse, seconds", seconds, "< 2"))
    return rows


def _training_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[Step, int]:
    """Return a training step (forward, backward, SGD) and its multiply-adds."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    with MacsCounter() as counter:
        step()
    return step, counter.macs


def _macs_as_defined(blended: Blended, x: torch.Tensor, y: torch.Tensor) -> int:
    """Return the multiply-adds of a training step in which no linear end is folded."""
    program = blended.program(training=True, fold=False)
    with MacsCounter() as counter:
        cross_entropy(program(blended, x), y).backward()
    return counter.macs


def ratios(first: Step, second: Step, repeats: int, device: torch.device) -> list[float]:
    """Return the ratio of two functions' times, measured in turns after a warm-up."""
    for function in (first, second):
        function()
    return [one / other for one, other in in_turns([first, second], device, repeats)]


def _forward(model: nn.Module, x: torch.Tensor, times: int) -> Step:
    def forward() -> None:
        with torch.inference_mode():
            for _ in range(times):
                model(x)

    return forward


def _collapsed_row(small: nn.Module, x: torch.Tensor, repeats: int, device: torch.device) -> Row:
    widths = [layer.out_channels for layer in small.modules() if isinstance(layer, nn.Conv2d)]
    stages, rest = [], widths
    for length in (2, 2, 3, 3, 3):
        stages.append(rest[:length])
        rest = rest[length:]
    built = VGG(stages).to(device).eval()
    built.load_state_dict(small.state_dict())  # the same numbers: speed may depend on them
    found = ratios(_forward(small, x, 10), _forward(built, x, 10), 3 * repeats, device)
    return _row("collapsed / built at its widths, inference", found, "1.00 ± 0.03")


def _speedup_row(
    dense: nn.Module, small: nn.Module, x: torch.Tensor, repeats: int, device: torch.device
) -> Row:
    dense = copy.deepcopy(dense).eval()
    found = ratios(_forward(dense, x, 1), _forward(small, x, 1), repeats, device)
    return _row("dense / collapsed, inference", found, "")


def _pipeline_seconds(x: torch.Tensor, keep: float) -> float:
    model = VGG().to(x.device)
    start = time.perf_counter()
    blended = attach(model, plan(model, x, keep))
    blended.alpha = 0.0
    collapse(blended)
    return time.perf_counter() - start


def _row(what: str, values: Sequence[float], target: str) -> Row:
    low, middle, high = quartiles(values)
    return Row(what, middle, low, high, target)

"""What the measurements of `branchprune cost` come to: medians, quartiles, ratios, a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from branchprune.benchmarks.cost_child import Row

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Summary:
    """All repetitions of one measurement; None where all of them failed.

    Attributes:
        model: Name of the model.
        variant: dense, small, or small with widths that are multiples of 8.
        device: cpu or cuda.
        batch: Images a batch.
        runtime: What runs it.
        repeats: Repetitions that succeeded.
        error: Why the first that failed did, or None.
        params: Parameters.
        weights_bytes: Parameters and buffers.
        image_s: Seconds an image: lower quartile, median and upper quartile of the medians.
        memory_bytes: CPU: growth of the process's resident memory. GPU: peak of the allocator.
        peak_bytes: CPU: peak of the process's resident memory.
        activations_bytes: GPU: peak of the allocator without weights and input.
        reserved_bytes: GPU: what the allocator took from the GPU.
        faster: Time of the dense model / time of this one, in the same turn.
        smaller: `memory_bytes` of the dense model / those of this one, in the same turn.
        smaller_peak: CPU: `peak_bytes` of the dense model / those of this one, in the same turn.
    """

    model: str
    variant: str
    device: str
    batch: int
    runtime: str
    repeats: int
    error: str | None
    params: int | None
    weights_bytes: int | None
    image_s: Quartiles | None
    memory_bytes: Quartiles | None
    peak_bytes: Quartiles | None
    activations_bytes: Quartiles | None
    reserved_bytes: Quartiles | None
    faster: Quartiles | None
    smaller: Quartiles | None
    smaller_peak: Quartiles | None


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Return a summary of each model, variant, device, batch and runtime, dense first."""
    cells: dict[tuple[str, str, int, str], dict[str, list[Row]]] = {}
    for row in rows:
        cell = cells.setdefault((row.model, row.device, row.batch, row.runtime), {})
        cell.setdefault(row.variant, []).append(row)
    return [
        _summary(cell[variant], cell.get("dense", []))
        for cell in cells.values()
        for variant in sorted(cell)  # the dense one comes first
    ]


def _summary(rows: Sequence[Row], dense: Sequence[Row]) -> Summary:
    first, good = rows[0], [row for row in rows if row.error is None]
    by_turn = {row.repeat: row for row in dense if row.error is None}
    pairs = [(by_turn[row.repeat], row) for row in good if row.repeat in by_turn]
    return Summary(
        *(first.model, first.variant, first.device, first.batch, first.runtime, len(good)),
        error=next((row.error for row in rows if row.error is not None), None),
        params=next((row.params for row in good), None),
        weights_bytes=next((row.weights_bytes for row in good), None),
        image_s=quartiles(row.median_s / row.batch for row in good if row.median_s is not None),
        memory_bytes=quartiles(row.memory for row in good),
        peak_bytes=quartiles(row.peak_bytes for row in good),
        activations_bytes=quartiles(row.activations_bytes for row in good),
        reserved_bytes=quartiles(row.reserved_bytes for row in good),
        faster=quartiles(_ratio(wide.median_s, row.median_s) for wide, row in pairs),
        smaller=quartiles(_ratio(wide.memory, row.memory) for wide, row in pairs),
        smaller_peak=quartiles(_ratio(wide.peak_bytes, row.peak_bytes) for wide, row in pairs),
    )


def _ratio(dense: float | None, small: float | None) -> float | None:
    return dense / small if dense is not None and small else None


def quartiles(values: Iterable[float | None]) -> Quartiles | None:
    """Return lower quartile, median and upper quartile of those values that are there."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    found = found if len(found) > 1 else [*found, *found]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return low, middle, high


def table(rows: Sequence[Row]) -> Group:
    """Return the summaries as two tables: time, and memory."""
    title = rows[0].hardware + f", {rows[0].threads} threads, torch {rows[0].torch}"
    time = _table(title, "ms an image", "quartiles", "dense / this", "quartiles")
    parts = ("weights, MiB", "activations", "peak", "growth")
    memory = _table("memory", *parts, "dense / this", "quartiles")
    for line in summarize(rows):
        what = (line.model, line.variant, line.device, str(line.batch), line.runtime)
        time.add_row(
            *what,
            *([(line.error or "")[:60], ""] if not line.image_s else _cells(line.image_s, 1e3, 4)),
            *_cells(line.faster, 1, 2),
        )
        memory.add_row(
            *what,
            "–" if line.weights_bytes is None else f"{line.weights_bytes / 2**20:.1f}",
            *(_cells(each, 2**-20, 1)[0] for each in (line.activations_bytes, *_peak(line))),
            *_cells(line.smaller, 1, 2),
        )
    return Group(time, memory)


def _table(title: str, *columns: str) -> Table:
    found = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "variant", "device"):
        found.add_column(column)
    for column in ("batch", "runtime", *columns):
        found.add_column(column, justify="right")
    return found


def _peak(line: Summary) -> tuple[Quartiles | None, Quartiles | None]:
    """Return the peak of the process (CPU) or the allocator (GPU), and a process's growth."""
    if line.device == "cpu":
        return line.peak_bytes, line.memory_bytes
    return line.memory_bytes, None


def _cells(value: Quartiles | None, unit: float, digits: int) -> list[str]:
    """Return the median and the quartiles in some unit."""
    if value is None:
        return ["–", ""]
    low, middle, high = (f"{unit * number:.{digits}f}" for number in value)
    return [middle, f"{low}–{high}"]

"""The files of a run in their runtime side by side, from the content of its result.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from branchprune.reports.quantities import duration, power, score, share, size

_BITS = {32: "float32", 16: "float16 weights", 8: "INT8"}


class InRuntime(NamedTuple):
    """A table of files, a column each.

    Attributes:
        title: What runs them.
        columns: What each is.
        rows: Label, note, and a text for each column.
        failed: What each that could not be written says.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]
    failed: list[tuple[str, str]]


def in_runtime(result: Mapping[str, Any]) -> InRuntime | None:
    """Return the table of a run's files; None: it wrote none.

    Args:
        result: The content of a `result.json`.
    """
    found = result.get("export")
    if found is None:
        return None
    every, metric = found["files"], result["metric"]
    files = [file for file in every if "failed" not in file]
    name, times = metric["label"], [file["latency"]["median_s"] for file in files]
    judged = [file.get("agreement") for file in files]
    classes = any(each and each["kind"] == "top-1" for each in judged)
    rows = [
        (
            f"{name[:1].upper()}{name[1:]}, {word}",
            "",
            [score(f[key], metric["format"]) for f in files],
        )
        for key, word in (("test", "test"), ("val", "validation"))
    ]
    rows += [
        ("File size", "", [size(file["bytes"]) for file in files]),
        ("Latency, batch 1", "median", [*map(duration, times)]),
        ("Speed-up", "over the first", [f"{times[0] / time:.2f}×" for time in times]),
        ("In whole numbers", "convolutions, fully connected layers", [*map(_rounded, files)]),
        (
            "Same class as in PyTorch" if classes else "Relative error of outputs",
            "on training images that set no ranges",
            [share(each["value"]) if each else "–" for each in judged],
        ),
        (
            "Difference to PyTorch",
            "before numbers were rounded",
            [power(f["parity"]) for f in files],
        ),
    ]
    rows = [row for row in rows if {*row[2]} != {"–"}]
    threads = found["threads"]
    title = f"{found['runtime']}, {found['precision']}, {threads} thread{'s' * (threads > 1)}"
    columns = [_named(file) for file in files]
    failed = [(_named(file), file["failed"]) for file in every if "failed" in file]
    return InRuntime(title, columns, rows, failed)


def _named(file: Mapping[str, Any]) -> str:
    return f"{file['model']}, {_BITS[file['bits']]}"


def _rounded(file: Mapping[str, Any]) -> str:
    return f"{file['rounded']} of {file['products']}" if "rounded" in file else "–"

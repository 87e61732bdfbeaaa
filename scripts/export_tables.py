"""What became of networks in files for runtimes, as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recorded_rows import made

from branchprune.artifacts.file_format import INT8
from branchprune.experiments.markdown import folded, markdown_table
from branchprune.reports.quantities import duration, size

HEADS = ("dense", "small", "dense_int8", "small_int8")
NAMES = ("dense", "small", "dense INT8", "small INT8")

SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "test": lambda file: f"{100 * file['test']:.2f} %",
    "validation": lambda file: f"{100 * file['val']:.2f} %",
    "size": lambda file: size(file["bytes"]),
    "one image": lambda file: duration(file["latency"]["median_s"]),
    "in whole numbers": lambda file: (
        f"{file['rounded']} of {file['products']}" if "rounded" in file else "–"
    ),
}


def exports_table(result: Mapping[str, Any]) -> str:
    """Return parity, size and latency of each network in each format, of `scripts/exports.py`."""
    options, rows = result["options"], result["rows"]
    lines = [
        [
            *("network", "format", "MACs left", "parity", "error, INT8"),
            *(f"{name}" for name in NAMES),
            *(f"{name}, ms" for name in NAMES),
            "of the limit",
        ]
    ]
    failed = []
    for row in rows:
        failed += [
            f"- {row['network']}, {row['format']}, {what}: {reason}"
            for what, reason in row["failed"].items()
        ]
        lines.append(
            [
                row["network"],
                row["format"],
                f"{row['macs']:.1%}",
                _worst(row["parity"], "{:.0e}"),
                _worst(row["error"], "{:.1%}"),
                *(_cell(row, "bytes", each, size) for each in HEADS),
                *(_cell(row, "ms", each, "{:.3g}".format) for each in HEADS),
                _of_limit(row),
            ]
        )
    spread = max((each for row in rows for each in row["spread"].values()), default=0.0)
    return (
        f"Files of one image at a time, {options['threads']} thread(s), "
        f"{options['keep']:.0%} of the channels kept in multiples of 8, {made(rows)}. Parity is "
        "the largest difference of outputs in float32, as a share of the largest; the error in 8 "
        "bits is the mean relative error on images that set no ranges, of networks with random "
        "weights. Ms are medians, of files that took turns, whose interquartile range is at most "
        f"{spread:.0%} of them; the last column is how many times as fast the small file is, as a "
        "share of what its multiply-adds would allow. Command: `python scripts/exports.py "
        f"--record`.\n\n{markdown_table(lines, 'll' + 'r' * (len(lines[0]) - 2))}"
        + ("\n\nNot written:\n\n" + "\n".join(failed) if failed else "")
    )


def _worst(found: Mapping[str, float], form: str) -> str:
    return form.format(max(found.values())) if found else "–"


def _cell(row: Mapping[str, Any], key: str, what: str, form: Any) -> str:
    if what in row["failed"]:
        return "fails"
    return form(row[key][what]) if what in row[key] else "–"


def _of_limit(row: Mapping[str, Any]) -> str:
    times = row["ms"]
    if "dense" not in times or "small" not in times:
        return "–"
    return f"{times['dense'] / times['small'] * row['macs']:.2f}"


def trained_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what runs with `export` have found of their files, from their result lines."""
    rows = [["run", "runtime", "", *NAMES]]
    for line in lines:
        found = line["export"]
        files = {f"{f['model']}{'_int8' * (f['bits'] == INT8)}": f for f in found["files"]}
        runtime = f"{found['runtime']}, {found['threads']} thread(s), {found['precision']}"
        for label, show in SHOWN.items():
            cells = ["fails" if "failed" in files[each] else show(files[each]) for each in HEADS]
            rows.append([f"{line['experiment']}, seed {line['seed']}", runtime, label, *cells])
    commands = "\n".join(dict.fromkeys(line["command"] for line in lines))
    return (
        f"{', '.join(sorted({line['metric'] for line in lines}))} in the runtime, "
        f"{made([{**line, 'torch': line['versions']['torch']} for line in lines])}; times are "
        f"medians of files that took turns.\n\n{markdown_table(rows, 'lllrrrr')}\n\n"
        + folded("Commands", f"```sh\n{commands}\n```")
    )

"""What became of targets as Markdown tables: cost reached, latency reached, changes that add up."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from recorded_rows import made

from branchprune.experiments.markdown import NOTHING, folded, markdown_table

Result = Mapping[str, Any]


def reach_table(result: Result) -> str:
    """Return how much of a budget plans use, of `scripts/target_reach.py`."""
    rows = result["rows"]
    lines = [["target", "models", "above it", "used, at least", "median", "one share, at least"]]
    for what in ("params", "macs"):
        found = [row for row in rows if row["what"] == what]
        used, share = ([row[key] for row in found] for key in ("used", "one_share"))
        above = sum(each > 1 for each in used)
        lines.append(
            [
                what,
                f"{len(found)}",
                f"{above}",
                *map(_percent, (min(used), median(used), min(share))),
            ]
        )
    below = [row for row in rows if row["used"] < 0.98]
    solving = [row["seconds"] for row in rows]
    every = [["model", "target", "groups", "asked", "used", "one share", "solving, s"]]
    every += [
        [
            row["model"],
            row["what"],
            f"{row['groups']}",
            *(_percent(row[key]) for key in ("asked", "used", "one_share")),
            f"{row['seconds']:.2f}",
        ]
        for row in rows
    ]
    names = ", ".join(f"{row['model']} ({row['what']})" for row in below)
    return (
        f"Models of torchvision, {made(rows)}. Asked is {_percent(result['options']['share'])} "
        "of what the dense model has, or where more stays whatever the widths, half of what can "
        "go; what groups lose is drawn at random; used is what the model of these widths has, "
        f"built and counted by itself. Solving took {median(solving):.2f} s (median; the most "
        f"{max(solving):.2f} s) of the processor's time. Command: `python scripts/target_reach.py "
        f"--record`.\n\n{markdown_table(lines, 'lrrrrr')}\n\n"
        + (f"Less than 98 % is used of: {names}.\n\n" if below else "")
        + folded("All models", markdown_table(every, "llrrrrr"))
    )


def latency_table(result: Result) -> str:
    """Return the latencies reached, of `scripts/target_latency.py`."""
    options, rows = result["options"], result["rows"]
    lines = [
        ["model", "dense", "predicted", "planned", "timed anew", "MACs left", "spread", "took"]
    ]
    lines += [
        [
            row["model"],
            f"{row['dense_ms']:.2f} ms",
            *(_percent(row[key]) for key in ("predicted", "planned", "used", "macs", "spread")),
            f"{row['seconds']:.0f} s",
        ]
        for row in rows
    ]
    within = sum(row["used"] <= 1.03 for row in rows)
    return (
        f"{options['runtime']}, {options['threads']} thread(s), one image of "
        f"{options['image_size']} px at a time, {made(rows)}. Asked is "
        f"{_percent(options['share'])} of the dense latency; predicted, "
        "planned and timed anew are shares of that, the last of the collapsed "
        f"model and the dense one in turns. {within} of {len(rows)} models are within 1.03 of it. "
        "Command: `python scripts/target_latency.py --record`.\n\n"
        + markdown_table(lines, "lrrrrrrr")
    )


def layer_latency_table(result: Result) -> str:
    """Return where the rest of the speed-up is, of `scripts/layer_latency.py`."""
    options, rows = result["options"], result["rows"]
    names = ["widths", "threads", "batch", "dense", "small", "times as fast", "fewer MACs"]
    lines = [[*names, "of that", "least"]]
    lines += [
        [
            _rounding(row),
            f"{row['threads']}",
            f"{row['batch']}",
            *(f"{row[key]:.2f} ms" for key in ("dense_ms", "small_ms")),
            "{1:.2f} ({0:.2f}–{2:.2f})".format(*row["faster"]),
            f"{row['fewer']:.2f}",
            f"{row['of_limit']:.0%}",
            f"{_least(row):.2f}",
        ]
        for row in rows
    ]
    layers = "\n\n".join(
        folded(
            f"Layer by layer: {_rounding(row)}, {row['threads']} thread(s), batch {row['batch']}",
            _layers(row),
        )
        for row in rows
    )
    versions = " and ".join(sorted({row["onnxruntime"] for row in rows}))
    return (
        f"VGG-16, {options['image_size']} px, keep {options['keep']:g}, ONNX Runtime {versions}, "
        f"{made(rows)}. Both are timed in turns; fewer MACs: how "
        "many times as fast it would be if each multiply-add took as long as in the dense model. "
        f"Layers, and their sums in the last column: the least of {options['runs']} profiled runs, "
        "which what else the machine does changes least. Lost: what a layer takes more than at the "
        "dense layer's rate. Command: `python scripts/layer_latency.py --record`.\n\n"
        f"{markdown_table(lines, 'lrrrrrrrr')}\n\n{layers}"
    )


def _least(row: Mapping[str, Any]) -> float:
    """Return how many times as fast the layers of a small model are, all together."""
    dense, small = (sum(each[key] for each in row["layers"]) for key in ("dense_us", "small_us"))
    return float(dense / small)


def _rounding(row: Mapping[str, Any]) -> str:
    multiple = row["multiple_of"]
    return "as they come" if multiple == 1 else f"multiples of {multiple}"


def _layers(row: Mapping[str, Any]) -> str:
    """Return the layers of a row, and what each takes more than its multiply-adds would."""
    lines = [["", "dense", "small", "times as fast", "fewer MACs", "lost", "of the small model"]]
    whole = sum(each["small_us"] for each in row["layers"])
    for each in row["layers"]:
        small_us, macs = each["small_us"], each["small_macs"]
        lines.append(
            [
                each["what"],
                *(f"{each[key]:.0f} µs" for key in ("dense_us", "small_us")),
                f"{each['dense_us'] / small_us:.2f}" if small_us else NOTHING,
                f"{each['dense_macs'] / macs:.2f}" if macs else NOTHING,
                f"{each['lost_us']:.0f} µs",
                _percent(each["lost_us"] / whole),
            ]
        )
    return markdown_table(lines, "lrrrrrr")


def additivity_table(result: Result) -> str:
    """Return how predicted changes rank widths, of `scripts/additivity.py`."""
    options, rows = result["options"], result["rows"]
    lines = [["network", "Spearman", "random", "one share", "added up", "the best of 30 ways"]]
    lines += [
        [
            row["network"],
            f"{row['spearman']:.2f}",
            f"{min(row['measured']):.3g} to {max(row['measured']):.3g}",
            *(f"{row['compared'][key]:.3g}" for key in ("one_share", "additive", "selected")),
        ]
        for row in rows
    ]
    return (
        f"{options['drawn']} choices of widths drawn at random with {_percent(options['share'])} "
        f"of the multiply-adds, {options['images']} images, {made(rows)}: Spearman's "
        "rank correlation of the change of the output that is predicted, each group's alone added "
        "up, with that measured, all groups narrow at once, fitted and not trained. The others are "
        "measured changes: least and largest of the random ones, and of widths at one share of "
        "all channels, of the least predicted change, and of what `plan` chooses. Command: `python "
        f"scripts/additivity.py --record`.\n\n{markdown_table(lines, 'lrrrrr')}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""The dense and the small model of a run side by side, from the content of its result.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from branchprune.reports.quantities import (
    Format,
    change,
    count,
    difference,
    duration,
    score,
    size,
)

_BETTER = {"max": "higher is better", "min": "lower is better"}
_MEASURES: dict[str, tuple[str, str, Format]] = {
    "loss": ("Loss", _BETTER["min"], "number"),
    "acc": ("Accuracy", _BETTER["max"], "percent"),
    "psnr": ("PSNR in dB", _BETTER["max"], "number"),
    "ssim": ("SSIM", _BETTER["max"], "number"),
    "swd": ("Sliced Wasserstein distance", _BETTER["min"], "number"),
}
"""Label, note and format of what tasks log, by the last part of its name."""

_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


class Row(NamedTuple):
    """One line of the table that compares the dense with the small model."""

    label: str
    note: str
    before: str
    after: str
    change: str


def compare(result: Mapping[str, Any]) -> list[Row]:
    """Return the table before → after: all that was measured in the test, then the costs.

    Args:
        result: The content of a `result.json`.
    """
    dense, small = result["cost"]["dense"], result["cost"]["small"]

    def row(label: str, key: str, form: Callable[[float], str], note: str = "") -> Row:
        old, new = dense[key], small[key]
        return Row(label, note, form(old), form(new), change(old, new))

    return [
        _score_row(result, "test"),
        *_other_rows(result),
        _score_row(result, "val"),
        row("Channels", "channels", "{:,}".format, "outputs of all layers"),
        row("Parameters", "params", "{:,}".format),
        row("MACs", "macs", "{:,}".format, "multiply-adds for one example"),
        row("File size", "file_bytes", size),
        _latency_row(result),
        row("Peak memory", "peak_memory_bytes", size, "weights, input and activations"),
    ]


def headline(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the label, the number and the small print of what a reader wants in five seconds.

    Args:
        result: The content of a `result.json`.
    """
    dense, small = result["cost"]["dense"], result["cost"]["small"]
    first = _score_row(result, "test")
    sizes = [
        (label, change(dense[key], small[key]), f"{count(dense[key])} → {count(small[key])}")
        for label, key in (("Parameters", "params"), ("MACs", "macs"))
    ]
    before = first.before.rstrip("\u00a0%")
    said, why = _speed_up(result)
    old, new, device = _times(result)
    return [
        (first.label, f"{before} → {first.after}", first.change),
        *sizes,
        ("Speed-up", said, f"{old} → {new} on {device}{why and f', {why}'}"),
    ]


def dry(result: Mapping[str, Any]) -> bool:
    """Return whether the run was a dry run, whose scores and times mean nothing."""
    return bool(result.get("fast", False))  # older runs do not say


def _speed_up(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return how many times as fast the small model is, where that is clear, and what tells."""
    dense, small = (result["cost"][model]["latency"] for model in ("dense", "small"))
    found = result["cost"].get("speed_up")  # older runs have measured one model after the other
    if dry(result):
        return "–", "not measured in a dry run"
    if found is not None:
        span = f"quartiles {found['low']:.2f}–{found['high']:.2f}×"
        clear = not found["low"] <= 1 <= found["high"]
        return (f"{found['median']:.2f}×" if clear else "unclear"), span
    old, new = dense["median_s"], small["median_s"]
    if not dense["iqr_s"] or not small["iqr_s"]:
        return "unclear", "timed once"
    spread = max(dense["iqr_s"], small["iqr_s"])
    if abs(old - new) <= spread:
        return "unclear", f"less than their spread (IQR {duration(spread)})"
    return f"{old / new:.2f}×", ""


def _times(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the latency of the dense and of the small model, and the device."""
    dense, small = (result["cost"][model]["latency"] for model in ("dense", "small"))
    device = _DEVICES.get(dense["device"], dense["device"])
    return duration(dense["median_s"]), duration(small["median_s"]), device


def _latency_row(result: Mapping[str, Any]) -> Row:
    latencies = [result["cost"][model]["latency"] for model in ("dense", "small")]
    old, new, device = _times(result)
    said, _ = _speed_up(result)
    spreads = [duration(latency["iqr_s"]) if latency["iqr_s"] else "–" for latency in latencies]
    count = latencies[0].get("count")  # older runs do not say
    note = f"median{f' of {count}' if count else ''} on {device}; IQR {' → '.join(spreads)}"
    faster = f"{said} as fast" if said.endswith("×") else said
    return Row(f"Latency, batch {latencies[0]['batch_size']}", note, old, new, faster)


def _score_row(result: Mapping[str, Any], split: str) -> Row:
    metric, scores = result["metric"], [result["scores"][m][split] for m in ("dense", "small")]
    label = f"{_capital(metric['label'])}, {'test' if split == 'test' else 'validation'}"
    return _measure_row(label, _BETTER[metric["mode"]], metric["format"], *scores)


def _other_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what else the task logs in the test: its loss, other metrics; older runs lack it."""
    dense, small = (result.get("test", {}).get(model, {}) for model in ("dense", "small"))
    shown = tuple(result["scores"][model]["test"] for model in ("dense", "small"))
    rows = []
    for name in dense.keys() & small.keys():
        values = dense[name], small[name]
        if values != shown:  # the metric of the run has its own row
            label, note, form = _measure(name)
            rows.append(_measure_row(f"{label}, test", note, form, *values))
    return sorted(rows)


def _measure(name: str) -> tuple[str, str, Format]:
    """Return label, note and format of what a task logs in the test, as "metric/test_ssim"."""
    parts = [part for part in re.split(r"[/_]", name) if part not in ("metric", "test")]
    unknown: tuple[str, str, Format] = _capital(" ".join(parts) or name), "", "number"
    return _MEASURES.get(parts[-1], unknown) if len(parts) == 1 else unknown


def _measure_row(label: str, note: str, form: Format, old: float, new: float) -> Row:
    return Row(label, note, score(old, form), score(new, form), difference(old, new, form))


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"

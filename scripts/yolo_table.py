"""The table of `yolo.py`, from its result lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from branchprune.experiments.markdown import markdown_table

DENSE, FURTHER = "dense", "dense, trained on"
METHODS = (DENSE, FURTHER, "blended", "cut")
HEAD = ("detector", "epochs", "mAP50", "mAP50-95", "parameters", "MACs", "times as fast", "ONNX")


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return what each way of pruning costs and keeps, as Markdown; the last line of each counts.

    Lines of another configuration than that of the last one are left out. ONNX is how far its
    exported file is from a detector at most, relative to its outputs.
    """
    *_, told = every = [*lines]
    last = {x["method"]: x for x in every if x["configuration"] == told["configuration"]}
    rows = [[*HEAD], *(_row(last[method]) for method in METHODS if method in last)]
    settings, versions = told["settings"], told["versions"]
    caption = (
        f"{settings['model'].removesuffix('.yaml')} from scratch, {settings['images']} images of "
        f"{settings['size']}x{settings['size']}, seed {told['seed']}; {told['hardware']}, "
        f"ultralytics {versions['ultralytics']}, torch {versions['torch']}, commit "
        f"{told['commit']}. Command: `{told['command']}`."
    )
    return f"{caption}\n\n{markdown_table(rows, 'lrrrrrrr')}"


def _row(line: dict[str, Any]) -> list[str]:
    faster = line["speed_up"]
    return [
        line["method"],
        str(line["epochs"]),
        f"{line['map50']:.3f}",
        f"{line['map50_95']:.3f}",
        f"{line['params']:,}",
        f"{line['macs']:,}",
        "–" if line["method"] in (DENSE, FURTHER) or faster is None else f"{faster['median']:.2f}",
        f"{line['onnx_difference']:.1e}",
    ]

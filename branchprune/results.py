"""Lines of results: what a finished run found, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from branchprune.errors import PruneError

COPIED = ("experiment", "method", "preset", "seed", "dataset", "hardware", "versions", "commit")
ROUND = ("val", "channels", "params", "macs")
REMOVED = ("channels", "params", "macs")


def add_line(path: Path, result: Mapping[str, Any]) -> None:
    """Add the line of a run to a file, unless it is there already.

    Args:
        path: A .jsonl file, made if it does not exist.
        result: What result.json holds.

    Raises:
        PruneError: The file cannot be written, or holds something else.
    """
    line = make_line(result)
    try:
        known = read_lines(path) if path.exists() else []
        if line in known:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise PruneError(f"results file {path} cannot be written: {error.strerror}") from error


def make_line(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a run: settings, scores (`dense`, `final`), and what was removed.

    `channels_removed`, `params_removed` and `macs_removed` are fractions. `train_macs` are the
    multiply-adds of the pruning, forward and backward, `dense_train_macs` those of the dense
    training; `epochs` and `seconds` are by stage, `curve` by epoch of blending, `rounds` by round.
    """
    dense, small, stages = result["cost"]["dense"], result["cost"]["small"], result["stages"]
    scores = result["scores"]
    spent = {name: stage["train_macs"] for name, stage in stages.items()}
    return {
        **{key: result[key] for key in COPIED},
        "command": result["command"],
        "date": result["date"],
        "epochs": {name: stage["epochs"] for name, stage in stages.items()},
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "loader_share": {name: stage["loader_share"] for name, stage in stages.items()},
        "train_macs": sum(spent.values()) - spent.get("dense", 0),
        "dense_train_macs": spent.get("dense", 0),
        "metric": result["metric"]["label"],
        "dense": scores["dense"]["test"],
        "final": scores["small"]["test"],
        "val": {name: score["val"] for name, score in scores.items()},
        **{f"{key}_removed": 1 - small[key] / dense[key] for key in REMOVED},
        "collapse_error": result["collapse"]["relative_error"],
        "latency": {name: result["cost"][name]["latency"] for name in ("dense", "small")},
        "curve": result["curve"],
        "rounds": [{key: each[key] for key in ROUND} for each in result["rounds"]],
        "memory": {name: result["cost"][name]["peak_memory_bytes"] for name in ("dense", "small")},
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results, in their order.

    Raises:
        PruneError: A line is not a JSON object.
    """
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise PruneError(f"{path}, line {number}: {error}") from error
        if not isinstance(line, dict):
            raise PruneError(f"{path}, line {number}: {text[:40]} is no JSON object")
        lines.append(line)
    return lines

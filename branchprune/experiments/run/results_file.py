"""Lines of results: what a finished run found, a JSON object a line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from branchprune.errors import Failed, PruneError
from branchprune.experiments.files import (
    alone_with,
    nearest_existing,
    read_lines,
    sealed,
    write_line,
)
from branchprune.experiments.run.configuration_digest import digest

COPIED = ("experiment", "method", "preset", "seed", "dataset", "hardware", "versions", "commit")
ROUND = ("val", "kept", "channels", "params", "macs")
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone_with(path) as file:
            if not any(_is_same(line, known) for known in read_lines(path)):
                write_line(file, sealed(line))
    except OSError as error:
        raise Failed(
            f"results file {path} cannot be written: {error.strerror} (--resume continues)"
        ) from error


def check_appendable(path: Path) -> None:
    """Raise a PruneError if a line could not be added to a file; nothing is written."""
    place = nearest_existing(path)
    if path.exists():
        if not path.is_file():
            raise PruneError(f"results file {path} cannot be written: it is no regular file")
        read_lines(path)
    elif not place.is_dir():
        raise PruneError(f"results file {path} cannot be written: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise PruneError(f"results file {path} cannot be written: {os.strerror(errno.EACCES)}")


def _is_same(line: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Return whether lines are of one run; that of an earlier version does not say which settings.

    They are compared as text, in which even NaN is itself.
    """
    keys = line.keys() - {"configuration"} if "configuration" not in known else line.keys()
    return known.keys() == keys and json.dumps([line[k] for k in known]) == json.dumps(
        [*known.values()]
    )


def make_line(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a run: settings, scores (`dense`, `final`), and what was removed.

    `test` is everything that the task logged in the test, for the dense and the small model, as
    far as the run has stored it: older ones hold the metric of the run alone.
    `configuration` is a digest of the settings, by which comparisons know lines of other ones.
    `channels_removed`, `params_removed` and `macs_removed` are fractions. `train_macs` are the
    multiply-adds of the pruning, forward and backward, `dense_train_macs` those of the dense
    training; `epochs` and `seconds` are by stage, `curve` by epoch of blending, `rounds` by round.
    """
    dense, small, stages = result["cost"]["dense"], result["cost"]["small"], result["stages"]
    scores = result["scores"]
    spent = {name: stage["train_macs"] for name, stage in stages.items()}
    return {
        **{key: result[key] for key in COPIED},
        **({"configuration": digest(result["configuration"])} if "configuration" in result else {}),
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
        **{key: result[key] for key in ("test", "export") if key in result},
        "val": {name: score["val"] for name, score in scores.items()},
        **{f"{key}_removed": 1 - small[key] / dense[key] for key in REMOVED},
        "collapse_error": result["collapse"]["relative_error"],
        "latency": {name: result["cost"][name]["latency"] for name in ("dense", "small")},
        "curve": result["curve"],
        "rounds": [{k: each[k] for k in ROUND if k in each} for each in result["rounds"]],
        "memory": {name: result["cost"][name]["peak_memory_bytes"] for name in ("dense", "small")},
    }

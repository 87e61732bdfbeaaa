"""The result of a run: everything that its result.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from torch import Tensor, nn

from branchprune.collapsing.collapse_check import TOLERANCE
from branchprune.errors import PruneError
from branchprune.experiments import environment
from branchprune.experiments.metrics_csv import read_metrics
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.shrinking import Pruned
from branchprune.graph.inputs import copied
from branchprune.graph.shortcut import shortcuts
from branchprune.planning.profiling import count_params, peak_memory
from branchprune.runtimes.latency import compare_latency

Scores = Mapping[str, Mapping[str, float]]


def make_result(
    config: RunConfig,
    command: str,
    commit: str | None,
    records: Mapping[str, dict[str, Any]],
    scores: Scores,
    tested: Scores,
    dense: nn.Module,
    pruned: Pruned,
    batch: Tensor,
) -> dict[str, Any]:
    """Measure both models of a run, and return that with all that is known of it.

    Args:
        config: What was done.
        command: The command line.
        commit: The commit of the code as the run began; None: not known.
        records: Epochs, seconds and more of each stage of training.
        scores: The metric of each model: "val", and of some "test".
        tested: All that was logged in the test of each model.
        dense: The dense model.
        pruned: The small model, and how it came about.
        batch: Test inputs, on which latency and memory are measured.

    Raises:
        PruneError: The small model is not as large as its plan says.
    """
    _check_size(pruned)
    epochs = {name: record["epochs"] for name, record in records.items()}
    seconds = {name: record["seconds"] for name, record in records.items()}
    return {
        **_setting(config, command, commit),
        "scores": scores,
        "test": tested,
        "cost": _cost(config, dense, pruned, batch),
        "collapse": {
            "relative_error": pruned.collapse_error,
            "tolerance": TOLERANCE,
            "relative_error_own_dtype": pruned.own_dtype_error,
        },
        "plan": pruned.plan.as_dict(),
        "left_out": [*shortcuts(pruned.small)],
        "rounds": pruned.rounds,
        "curve": _curve(config),
        "stages": records,
        "epochs": _dense_and_prune(epochs),
        "seconds": _dense_and_prune(seconds),
    }


def _setting(config: RunConfig, command: str, commit: str | None) -> dict[str, Any]:
    """Return what was run, on what, and how it is judged."""
    metric, blend = config.metric, config.prune.blend
    return {
        "experiment": config.name,
        "method": config.method or config.prune.algorithm_key,
        "preset": config.preset,
        "dataset": config.dataset,
        "command": command,
        "seed": config.seed,
        "fast": config.fast,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": environment.hardware(config.accelerator),
        "commit": commit,
        "versions": environment.versions(),
        "configuration": config.text,
        "recalibrate": blend.recalibrate if blend else 0,
        "metric": {
            "column": metric.val,
            "label": metric.label,
            "mode": metric.mode,
            "format": metric.format,
        },
    }


def _curve(config: RunConfig) -> list[dict[str, float]]:
    """Return α (the mean of all groups), scores, learning rate, mean and least share by epoch."""
    path = config.output / "prune" / "metrics.csv"
    metric = config.metric.val
    columns = {"val": metric, "branch": f"{metric}_branch", "lr": "lr"}
    curve = []
    for row in read_metrics(path) if path.exists() else []:
        alphas, shares = (
            [value for name, value in row.items() if name.startswith(tag)]
            for tag in ("alpha/", "share/")
        )
        point = {key: row[column] for key, column in columns.items() if column in row}
        if shares:
            point |= {"share": sum(shares) / len(shares), "least_share": min(shares)}
        if alphas and "val" in point:
            curve.append({"epoch": row["epoch"], "alpha": sum(alphas) / len(alphas), **point})
    return curve


def _cost(config: RunConfig, dense: nn.Module, pruned: Pruned, batch: Tensor) -> dict[str, Any]:
    """Measure both models on the run's device: latency, memory, size of their files."""
    device = environment.device_of(config.accelerator)
    batch = batch.to(device)
    models = {"dense": dense, "small": pruned.small.cpu()}
    models = {name: copied(model).to(device) for name, model in models.items()}  # not compiled
    seconds = 0.0 if config.fast else 2.0  # of a dry run, times mean nothing
    before, after, speed_up = compare_latency(models["dense"], models["small"], batch, seconds)
    measured = {"dense": (pruned.plan.before, before), "small": (pruned.plan.after, after)}
    cost: dict[str, Any] = {
        name: asdict(planned)
        | {
            "file_bytes": (config.output / f"{name}.safetensors").stat().st_size,
            "latency": asdict(latency),
            "peak_memory_bytes": peak_memory(models[name], batch),
        }
        for name, (planned, latency) in measured.items()
    }
    return cost | {"speed_up": speed_up and asdict(speed_up)}


def _check_size(pruned: Pruned) -> None:
    """Raise if the plan, of which everything is reported, is not that of the small model."""
    planned = pruned.plan.after.params
    found = count_params(pruned.small.get_submodule(pruned.plan.structure.inside))
    if found != planned:
        raise PruneError(f"the small model has {found} parameters, and its plan says {planned}")


def _dense_and_prune(values: dict[str, float]) -> dict[str, float]:
    """Add up what stages took, the dense training apart."""
    dense = values.get("dense", 0)
    return {"dense": dense, "prune": round(sum(values.values()) - dense, 1)}

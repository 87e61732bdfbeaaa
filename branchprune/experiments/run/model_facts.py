"""What the files of a run say of their models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from branchprune.artifacts.facts import Facts
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.model_origin import model_origin
from branchprune.experiments.run.shrinking import Pruned


def dense_facts(config: RunConfig, scores: Mapping[str, float]) -> Facts:
    """Return what is known of the dense model of a run.

    Args:
        config: What is done.
        scores: Its scores, "val" and "test".
    """
    return Facts(model_origin(config.text), metric=_metric(config, scores))


def small_facts(
    config: RunConfig, scores: Mapping[str, Mapping[str, float]], pruned: Pruned
) -> Facts:
    """Return what is known of the small model of a run.

    Args:
        config: What is done.
        scores: Those of both models, "val" and "test".
        pruned: The small model, and how it came about.
    """
    before, after = pruned.plan.before, pruned.plan.after
    method = config.method or config.prune.algorithm_key
    dense = scores["dense"].get("test")
    compared = f" Dense, its {config.metric.label} is {dense:.6g}." * (dense is not None)
    dry = " It was a dry run, of two batches an epoch." * config.fast
    made = (
        f"Made by `branchprune run` (experiment {config.name}, method {method}, seed "
        f"{config.seed}). The collapse is exact to {pruned.collapse_error:.0e}.{compared}{dry}"
    )
    known = dense_facts(config, scores["small"])
    keep = config.prune.widths.keep
    return Facts(known.origin, keep, known.metric, macs=(before.macs, after.macs), notes=(made,))


def _metric(config: RunConfig, scores: Mapping[str, float]) -> dict[str, Any]:
    """Return the score of the test, under the label that reports give it."""
    if not math.isfinite(scores.get("test", math.nan)):
        return {}
    return {config.metric.label: {"value": scores["test"], "dataset": config.dataset}}

"""Numbers that decide on a training, added up or averaged over its ranks, the same on each."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from pytorch_lightning import Trainer

from branchprune.errors import PruneError


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(values: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Return sums and counts by name, added up over all ranks; a rank may lack a name."""
    if _ranks() == 1:
        return dict(values)
    gathered: list[Mapping[str, tuple[float, int]]] = [{}] * _ranks()
    dist.all_gather_object(gathered, dict(values))
    found: dict[str, tuple[float, int]] = {}
    for each in gathered:
        for name, (total, count) in each.items():
            before = found.get(name, (0.0, 0))
            found[name] = before[0] + total, before[1] + count
    return found


def means_of_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return the means of numbers over all ranks, bit by bit the same on each."""
    if _ranks() == 1:
        return dict(values)
    sums = summed({name: (value, 1) for name, value in values.items()})
    return {name: total / count for name, (total, count) in sums.items()}


def monitored(trainer: Trainer, name: str) -> float:
    """Return a metric that is logged; where ranks differ in it, their mean.

    Raises:
        PruneError: It is not logged.
    """
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise PruneError(f"monitor (={name!r}) is not logged; logged are: {known}")
    return means_of_ranks({name: float(trainer.callback_metrics[name])})[name]

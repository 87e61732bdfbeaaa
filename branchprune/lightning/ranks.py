"""Several processes: what decides on a training has to be the same on all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from pytorch_lightning import Trainer

from branchprune.errors import PruneError

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")


def check_strategy(trainer: Trainer) -> None:
    """Raise a PruneError for a strategy by which no process has the whole model."""
    kind = next((k.__name__ for k in type(trainer.strategy).__mro__ if k.__name__ in _SHARDING), "")
    if kind:
        raise PruneError(
            f"strategy (a {kind}) cuts weights into pieces, and pruning needs whole ones: use "
            "strategy='ddp'"
        )


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


def mean_of_ranks(value: float) -> float:
    """Return the mean of a number over all ranks, bit by bit the same on each."""
    total, count = summed({"": (value, 1)})[""]
    return total / count

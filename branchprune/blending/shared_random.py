"""Random numbers that every rank of a DistributedDataParallel training has: the first one draws."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from branchprune.blending.ddp_gradients import active_ddp


def uniform(*shape: int) -> Tensor:
    """Return random numbers in [0, 1), the same on every rank of a DDP training."""
    ddp = active_ddp()
    numbers = torch.rand(shape, dtype=torch.float32)
    return numbers if ddp is None else _of_first(ddp, numbers)


def uniform_rows(rows: int, columns: int) -> Tensor:
    """Return random numbers in [0, 1), for each example of a batch; DDP's ranks share one batch.

    Args:
        rows: Examples on this rank.
        columns: Numbers for each of them.
    """
    ddp = active_ddp()
    if ddp is None:
        return torch.rand(rows, columns, dtype=torch.float32)
    group, rank = ddp.process_group, dist.get_rank(ddp.process_group)
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.long, device=_device(ddp))
    counts[rank] = rows
    dist.all_reduce(counts, group=group)
    sizes: list[int] = counts.tolist()
    numbers = torch.rand(sum(sizes), columns, dtype=torch.float32)
    mine: Tensor = _of_first(ddp, numbers).split(sizes)[rank]
    return mine


def _of_first(ddp: DistributedDataParallel, numbers: Tensor) -> Tensor:
    shared = numbers.to(_device(ddp))
    dist.broadcast(shared, group=ddp.process_group, group_src=0)
    return shared


def _device(ddp: DistributedDataParallel) -> torch.device:
    return next(ddp.parameters()).device

"""Models whose parameters are cut into pieces, one on each process."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from branchprune.errors import PruneError


def refuse_sharded(model: nn.Module) -> None:
    """Raise a PruneError for a model under FSDP, FSDP2 or tensor parallel.

    What is folded reads whole weights, outside of the calls of layers in which FSDP gathers them.
    """
    if not (dist.is_available() and dist.is_initialized()):  # the second is not in every build
        return
    for name, module in model.named_modules():
        if (kind := _kind(module)) is not None:
            raise PruneError(
                f"{name or type(model).__name__} is sharded by {kind}, and weights have to be "
                "whole: train with DistributedDataParallel (in Lightning strategy='ddp'), and "
                "shard the collapsed model"
            )


def _kind(module: nn.Module) -> str | None:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if isinstance(module, FSDPModule):
        return "FSDP2 (fully_shard)"
    if getattr(module, "_is_fsdp_managed_module", False):
        return "FullyShardedDataParallel"
    if any(isinstance(p, DTensor) for p in module._parameters.values()):
        return "tensor parallel (DTensor)"
    return None

"""What can be planned at all: a plain module in one piece, with weights."""

from __future__ import annotations

import torch
from torch import nn

from branchprune.errors import PruneError
from branchprune.graph.sharding import refuse_sharded


def check_model(model: nn.Module) -> None:
    """Raise a PruneError for what is no plain module, or has no weights yet."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise PruneError(f"model (a {kind}) must be a torch.nn.Module with a Python forward")
    if kind == "Blended":
        raise PruneError("model is blended already: collapse it first, or plan blended.model")
    refuse_wrapped(model)
    refuse_sharded(model)
    refuse_lazy(model)
    for name, weight in model.named_parameters():
        if weight.is_inference():
            raise PruneError(
                f"model: {name} was made, moved or cast under torch.inference_mode, so it cannot "
                "learn: do that outside of it"
            )


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a PruneError for what holds the model that is meant."""
    kind = type(model).__name__
    wrappers = {"OptimizedModule": "_orig_mod"} | dict.fromkeys(
        ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"), "module"
    )
    if kind in wrappers:
        raise PruneError(f"model is wrapped in {kind}: pass model.{wrappers[kind]}")


def refuse_lazy(model: nn.Module) -> None:
    """Raise a PruneError for layers whose sizes are not known before the model has run."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise PruneError(f"{name} has no size yet: run the model once before")

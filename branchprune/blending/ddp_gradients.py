"""Gradients for DistributedDataParallel, which waits for one of every parameter on every rank.

At α = 1 the branch has none, at α = 0 the wide path: both are given zeros, which are taken away
again once they have been averaged, so that neither weight decay nor momentum moves what is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function, Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from branchprune.graph.inputs import tensors


def active_ddp() -> DistributedDataParallel | None:
    """Return the DDP module in whose forward this is called; None if there is none."""
    found: DistributedDataParallel | None = DistributedDataParallel._active_ddp_module
    return found if found is not None and dist.is_initialized() else None


def with_ddp_gradients(
    blended: nn.Module, part: nn.Module, read: Sequence[str], output: Any
) -> Any:
    """Return the output of a blended model; in a DDP training, with all gradients it waits for.

    DDP waits for those of every parameter that learned when it began, so its attribute
    `originals_held` stands for a `requires_grad` that is changed.

    Args:
        blended: The blended model.
        part: What was planned in it.
        read: Paths of what the output has been computed from.
        output: What forward returns, with tensors in it.
    """
    if active_ddp() is None:
        return output
    used = _parameters_read(blended, read)
    ours = _parameters_read(blended, ("reduce", "expand", "twin", "private")) | {*part.parameters()}
    learn = [p for p in blended.parameters() if p in ours and p.requires_grad]
    held = _parameters_read(blended, ("model",)) if blended.originals_held else ()
    return _with_gradients(output, [p for p in learn if p not in used], [*held])


def _parameters_read(root: nn.Module, paths: Sequence[str]) -> set[nn.Parameter]:
    """Return the parameters that are, or are in, what some paths name."""
    found: set[nn.Parameter] = set()
    for path in paths:
        named = attrgetter(path)(root)
        if isinstance(named, nn.Module):
            found.update(named.parameters())
        elif isinstance(named, nn.Parameter):
            found.add(named)
    return found


def _with_gradients(output: Any, idle: Sequence[nn.Parameter], held: Sequence[nn.Parameter]) -> Any:
    """Return an output whose backward pass gives idle parameters what DDP waits for.

    Args:
        output: What forward returns, with tensors in it.
        idle: Parameters that it does not depend on. Their gradient is none afterwards, if it was
            none before.
        held: Parameters that are not to learn, whose gradient is taken away as well.
    """
    if not (idle or held) or not any(tensor.requires_grad for tensor in tensors(output)):
        return output
    zero = _Zero.apply(len(idle), *idle, *held)

    def join(tensor: Tensor) -> Tensor:
        joined: Tensor = _Join.apply(tensor, zero) if tensor.requires_grad else tensor
        return joined

    return tree_map_only(Tensor, join, output)


class _Zero(Function):
    """A number of which idle parameters have the gradient 0, and held ones none at all."""

    @staticmethod
    def forward(ctx: Any, idle: int, *parameters: nn.Parameter) -> Tensor:
        ctx.idle, ctx.held = parameters[:idle], parameters[idle:]
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        without = [*ctx.held, *(p for p in ctx.idle if p.grad is None)]

        def forget() -> None:
            for parameter in without:
                parameter.grad = None

        # DDP's own callback, which averages, is queued later in this backward pass.
        engine = Variable._execution_engine
        engine.queue_callback(lambda: engine.queue_callback(forget))
        return None, *map(torch.zeros_like, ctx.idle), *(None for _ in ctx.held)


class _Join(Function):
    """Its first argument, whose gradient reaches the second, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, zero: Tensor) -> Tensor:
        ctx.zero = zero.detach()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.zeros_like(ctx.zero)

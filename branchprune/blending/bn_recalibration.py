"""Fresh BatchNorm statistics for a model that is about to be judged at another α.

While α moves, the running statistics are those of the blend, and a branch judged with them looks
far worse than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from branchprune.errors import PruneError
from branchprune.graph.inputs import training_mode

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


@contextmanager
def recalibrated(model: nn.Module, inputs: Iterable[Inputs]) -> Iterator[None]:
    """Give a model the BatchNorm statistics of some training inputs for a `with` block.

    Nothing is trained, no random number is drawn from the generators in use, and afterwards every
    buffer and every momentum is what it was, even if an input does not fit.

    Args:
        model: The network.
        inputs: Arguments of the calls to make in training mode; none: nothing changes.

    Raises:
        PruneError: An input does not fit the model, or is too small for BatchNorm.
    """
    calls = iter(inputs)
    first = next(calls, None)
    if first is None:
        yield
        return
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in model.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    norms = batch_norms(model)
    try:
        with torch.no_grad(), training_mode(model, True), torch.random.fork_rng(_gpus(buffers)):
            reestimate(norms, chain([first], calls), partial(_call, model))
        yield
    finally:
        for owner, name, buffer, value in buffers:
            owner._buffers[name] = buffer.copy_(value)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def reestimate(
    norms: Sequence[_BatchNorm], inputs: Iterable[Inputs], run: Callable[[Inputs], object]
) -> None:
    """Give BatchNorm layers the mean statistics of some inputs; every momentum stays what it was.

    Args:
        norms: The layers; they are put into training mode.
        inputs: Arguments of the calls to make.
        run: Makes a call, which passes through the layers.
    """
    momenta = [norm.momentum for norm in norms]
    try:
        update_bn(([call] for call in inputs), _Calls(norms, run))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _gpus(buffers: Sequence[tuple[nn.Module, str, Tensor, Tensor]]) -> list[torch.device]:
    return list({buffer.device for _, _, buffer, _ in buffers if buffer.is_cuda})


class _Calls(nn.Module):
    """Makes one call after the other; only the layers that are to be estimated are in it."""

    def __init__(self, norms: Sequence[_BatchNorm], run: Callable[[Inputs], object]) -> None:
        super().__init__()
        self.norms, self.run = nn.ModuleList(norms), run

    def forward(self, call: Inputs) -> object:
        return self.run(call)


def _call(model: nn.Module, inputs: Inputs) -> object:
    args, kwargs = inputs
    try:
        return model(*args, **kwargs)
    except (TypeError, RuntimeError, PruneError) as error:
        raise PruneError(
            "batches must be inputs of forward, a tuple meaning several arguments; of a loader "
            f"of pairs take `(batch[0] for batch in loader)`: {error}"
        ) from error
    except ValueError as error:
        raise PruneError(f"batches hold one that BatchNorm cannot use: {error}") from error

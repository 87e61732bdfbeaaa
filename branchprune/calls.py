"""Calling a model on an example without leaving a trace in either."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from branchprune.errors import PruneError

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def example_inputs(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split an example into positional and keyword arguments of `forward`."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if not isinstance(example, Tensor):
        kind = type(example).__name__
        raise PruneError(f"example (a {kind}) must be a tensor, a tuple or a dictionary of them")
    return (example,), {}


def on_device(example: Example, model: Callable[..., Any]) -> Example:
    """Return the example on the device of the model's parameters."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    weight = next(parameters, None)
    if weight is None:
        return example
    moved: Example = tree_map_only(Tensor, lambda tensor: tensor.to(weight.device), example)
    return moved


def call(model: Callable[..., Any], example: Example) -> Any:
    """Run a model on a copy of an example, which a model that works in place may change.

    Whatever it draws at random is the same in every call; the generators are left as they were.
    """
    args, kwargs = tree_map_only(Tensor, Tensor.clone, example_inputs(on_device(example, model)))
    devices = {tensor.device for tensor in tensors((args, kwargs)) if tensor.is_cuda}
    with torch.random.fork_rng(list(devices)):
        return model(*args, **kwargs)


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors in an output, however nested."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into one mode, and each back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        PruneError: The model holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise PruneError(f"{type(model).__name__} cannot be copied by deepcopy: {error}") from error

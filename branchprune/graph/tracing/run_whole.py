"""The output of a module that is recorded as a whole, while forward is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import own_generators
from branchprune.graph.tracing.without_numbers import layer_output

LIBRARY = ("torch.nn", "torch.ao.nn")
"""Modules that are torch's own begin so."""


def run_whole(
    module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a module that is not looked into.

    What it returns may depend on its mode. Layers of torch run in evaluation mode, and so does
    what cannot train on the example, as BatchNorm cannot on a single number a channel.
    """
    quick = layer_output(module, args, kwargs)
    if quick is not None:
        return quick
    if module.__module__.startswith(LIBRARY):  # these draw nothing in evaluation mode
        if not module.training and not module._modules:
            return original(module, *args, **kwargs)
        with training_mode(module, False):
            return original(module, *args, **kwargs)
    try:
        with own_generators(module.parameters()):
            return original(module, *args, **kwargs)
    except Exception:  # the attempt below says what is wrong
        pass
    with training_mode(module, False), own_generators(module.parameters()):
        return original(module, *args, **kwargs)

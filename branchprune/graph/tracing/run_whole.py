"""The output of a module that is recorded as a whole, while forward is recorded.

That of torch's most common layers needs no computing where it has no numbers: on the device `meta`
torch computes a norm or a Hardswish by many functions of Python, which takes fifty times as long as
to make an empty tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import own_generators

LIBRARY = ("torch.nn", "torch.ao.nn")
"""Modules that are torch's own begin so."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ACTIVATIONS = (nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.ELU, nn.Mish, nn.Softplus, nn.LeakyReLU)


def run_whole(
    module: nn.Module, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a module that is not looked into.

    What it returns may depend on its mode. Layers of torch run in evaluation mode, and so does
    what cannot train on the example, as BatchNorm cannot on a single number a channel.
    """
    quick = _quick_output(module, args, kwargs)
    if quick is not None:
        return quick
    if module.__module__.startswith(LIBRARY):  # these draw nothing in evaluation mode
        with training_mode(module, False):
            return original(module, *args, **kwargs)
    if module.training:
        try:
            with own_generators(module.parameters()):
                return original(module, *args, **kwargs)
        except Exception:  # the attempt below says what is wrong
            pass
    with training_mode(module, False), own_generators(module.parameters()):
        return original(module, *args, **kwargs)


def _quick_output(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer of torch returns on `meta`; None where it has to be run.

    Args:
        module: The layer, in evaluation mode.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or not x.is_meta or not _is_plain(module):
        return None
    if type(module) in ACTIVATIONS:
        return torch.relu_(x) if getattr(module, "inplace", False) else torch.empty_like(x)
    if isinstance(module, BATCH_NORMS):
        module._check_input_dim(x)
        return torch.empty_like(x) if x.shape[1] == module.num_features else None
    if isinstance(module, nn.LayerNorm):
        dims = tuple(x.shape[x.dim() - len(module.normalized_shape) :])
        return torch.empty_like(x) if dims == module.normalized_shape else None
    if isinstance(module, nn.Linear) and x.shape[-1:] == (module.in_features,):
        fits = x.dtype == module.weight.dtype
        return x.new_empty(*x.shape[:-1], module.out_features) if fits else None
    return None


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is torch's own, and nothing hangs on it."""
    hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module).__module__.startswith("torch.nn.modules.") and not hooks

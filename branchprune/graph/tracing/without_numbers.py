"""What calls return on the device `meta`, where no numbers stand in a tensor, told from shapes.

There torch computes a norm, an activation, a sum or a concatenation by many functions of Python,
which takes a hundred times as long as to make a tensor. The most common ones are answered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ACTIVATIONS = frozenset(
    "relu relu6 elu selu celu gelu silu mish hardswish hardsigmoid hardtanh leaky_relu leakyrelu "
    "softplus sigmoid tanh".split()
)
"""Functions and layers whose result is like the tensor of floats that they are given."""
ARITHMETIC = frozenset(("add", "sub", "mul", "div"))
"""Operators of two tensors, or of a tensor and a number."""
JOINS = frozenset(("cat", "concat"))


def layer_output(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer of torch returns on `meta`; None where it has to be run.

    Args:
        module: The layer, in evaluation mode.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or not x.is_meta or not _is_plain(module):
        return None
    if type(module).__name__.lower() in ACTIVATIONS and x.is_floating_point():
        return torch.relu_(x) if getattr(module, "inplace", False) else x.clone()
    if isinstance(module, BATCH_NORMS):
        module._check_input_dim(x)
        return x.clone() if x.shape[1] == module.num_features else None
    if isinstance(module, nn.LayerNorm):
        dims = tuple(x.shape[x.dim() - len(module.normalized_shape) :])
        return x.clone() if dims == module.normalized_shape else None
    if isinstance(module, nn.Linear) and x.shape[-1:] == (module.in_features,):
        fits = x.dtype == module.weight.dtype
        return x.new_empty(*x.shape[:-1], module.out_features) if fits else None
    return None


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is torch's own, and nothing hangs on it."""
    hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module).__module__.startswith("torch.nn.modules.") and not hooks


def function_output(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a function of torch, or a method of tensors, returns on `meta`.

    Args:
        name: Its name.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        The tensor; None where the function has to be run.
    """
    if name in JOINS and args:
        dim = args[1] if len(args) == 2 else kwargs.get("dim", 0)
        return _joined(args[0], dim) if kwargs.keys() <= {"dim"} else None
    if name in ARITHMETIC and len(args) == 2 and not kwargs:
        large = next((x for x, y in (args, args[::-1]) if _is_like(x, y)), None)
        return None if large is None else large.clone()
    x = args[0] if name in ACTIVATIONS and args else None
    plain = isinstance(x, Tensor) and x.is_meta and x.is_floating_point()
    changes = kwargs.get("inplace") or "out" in kwargs or any(each is True for each in args)
    return x.clone() if isinstance(x, Tensor) and plain and not changes else None


def _is_like(large: Any, small: Any) -> bool:
    """Return whether the sum of two tensors, or of a tensor and a number, is like the first."""
    if not isinstance(large, Tensor) or not large.is_meta or not large.is_floating_point():
        return False
    if not isinstance(small, Tensor):
        return type(small) in (int, float)
    sizes = zip(reversed(large.shape), reversed(small.shape), strict=False)
    fits = small.is_meta and small.dtype == large.dtype and small.dim() <= large.dim()
    return fits and all(m in (1, n) for n, m in sizes)


def _joined(tensors: Any, dim: Any) -> Tensor | None:
    """Return a concatenation of tensors of one type that lie in memory in order."""
    if not isinstance(tensors, tuple | list) or not tensors or type(dim) is not int:
        return None
    first: Tensor = tensors[0]
    for each in tensors:
        if not isinstance(each, Tensor) or not each.is_meta or not each.is_contiguous():
            return None
        if each.dtype != first.dtype or each.dim() != first.dim():
            return None
    if not -first.dim() <= dim < first.dim():
        return None
    shapes = [[*each.shape] for each in tensors]
    size = sum(shape.pop(dim) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        return None
    at = dim % first.dim()
    return first.new_empty([*shapes[0][:at], size, *shapes[0][at:]])

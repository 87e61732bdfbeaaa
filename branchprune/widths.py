"""Sizes of modules: reading them, and giving a module another width in place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

SIZE_ATTRIBUTES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features"),
    *("num_features", "num_channels", "num_parameters", "normalized_shape"),
)


def sizes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that name its width."""
    found = {name: getattr(module, name) for name in SIZE_ATTRIBUTES if hasattr(module, name)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def describe(module: nn.Module) -> str:
    """Return the kind and the widths of a module, in words."""
    widths = ", ".join(f"{name}={value}" for name, value in sizes(module).items())
    return f"{type(module).__name__}({widths})"


def set_sizes(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Set the attributes that name a module's width."""
    for name in SIZE_ATTRIBUTES:
        if name in attributes and hasattr(module, name):
            value = attributes[name]
            setattr(module, name, tuple(value) if isinstance(value, list) else value)


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another shape, of the same memory format."""
    old = getattr(module, name)
    value = torch.empty_like(value, memory_format=_memory_format(old)).copy_(value)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
    setattr(module, name, value)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the format that the strides say; of a 1x1 kernel, `is_contiguous` says both."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    plain = torch.empty(tensor.shape, device="meta")
    if last is None or tensor.stride() == plain.stride():
        return torch.contiguous_format
    return last if tensor.is_contiguous(memory_format=last) else torch.contiguous_format


def set_linear_width(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a convolution or fully connected layer a weight and bias of other widths."""
    for name, size in _linear_sizes(layer, weight).items():
        setattr(layer, name, size)
    set_tensor(layer, "weight", weight)
    if bias is not None:
        set_tensor(layer, "bias", bias)


def _linear_sizes(layer: nn.Module, weight: Tensor) -> dict[str, int]:
    first, second = weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return {"out_features": first, "in_features": second}
    groups = int(getattr(layer, "groups", 1))
    if getattr(layer, "transposed", False):
        return {"in_channels": first, "out_channels": second * groups}
    return {"out_channels": first, "in_channels": second * groups}


def narrow_channelwise(module: nn.Module, axis: int | None, times: int, index: Tensor) -> nn.Module:
    """Return a copy of a channelwise module that is restricted to some of its channels.

    Args:
        module: BatchNorm, LayerNorm, PReLU, depthwise convolution, …
        axis: The axis of its parameters and buffers that counts channels; None if there is none.
        times: Outputs a channel.
        index: The channels to keep, in order.
    """
    narrow = copy.deepcopy(module)
    if axis is None:
        return narrow
    outputs = (index[:, None] * times + torch.arange(times)).flatten()
    tensors = [*narrow.named_parameters(recurse=False), *narrow.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.dim() > axis:
            set_tensor(narrow, name, tensor.detach().index_select(axis, outputs.to(tensor.device)))
    for name in ("num_features", "num_channels", "num_parameters", "in_channels", "groups"):
        if hasattr(narrow, name):
            setattr(narrow, name, len(index))
    if hasattr(narrow, "out_channels"):
        setattr(narrow, "out_channels", len(outputs))  # noqa: B010
    if isinstance(narrow, nn.LayerNorm | nn.RMSNorm):
        shape = list(narrow.normalized_shape)
        shape[axis] = len(index)
        narrow.normalized_shape = tuple(shape)
    return narrow

"""Modules: their kinds and sizes, giving one another width in place, putting one at a path."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SIZE_ATTRIBUTES = (
    *("in_channels", "out_channels", "groups", "in_features", "out_features"),
    *("num_features", "num_channels", "num_parameters", "normalized_shape", "unflattened_size"),
)
SIZES_OF_CLASSES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.RNNBase: ("input_size", "hidden_size"),
    nn.MultiheadAttention: ("embed_dim", "kdim", "vdim", "head_dim"),
}
"""Attributes that name a width in these classes; a user's module may mean others by them."""


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module of a user's class replaces the forward of its class in torch.nn."""
    if isinstance(module, torch.jit.ScriptModule):
        return False  # its code is not Python's
    return not str(type(module).forward.__module__).startswith("torch.nn.modules")


def sizes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that name its width."""
    own = vars(module)
    found = {name: own[name] for name in _size_attributes(module) if name in own}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def _size_attributes(module: nn.Module) -> tuple[str, ...]:
    own = (names for kind, names in SIZES_OF_CLASSES.items() if isinstance(module, kind))
    return SIZE_ATTRIBUTES + next(own, ())


def describe(module: nn.Module) -> str:
    """Return the kind and the widths of a module, in words."""
    widths = ", ".join(f"{name}={value}" for name, value in sizes(module).items())
    # A copy of a traced one has another class.
    scripted = isinstance(module, torch.jit.ScriptModule)
    return f"{'ScriptModule' if scripted else type(module).__name__}({widths})"


def set_sizes(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Set the attributes that name a module's width."""
    for name in _size_attributes(module):
        if name in attributes and name in vars(module):
            value = attributes[name]
            setattr(module, name, tuple(value) if isinstance(value, list) else value)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module itself, without those within, by name."""
    parameters, buffers = (
        module.named_parameters(recurse=False),
        module.named_buffers(recurse=False),
    )
    return {**dict(parameters), **dict(buffers)}


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another shape, of the same memory format."""
    old = getattr(module, name)
    value = torch.empty_like(value, memory_format=memory_format(old)).copy_(value)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
    setattr(module, name, value)


def put_parameters(module: nn.Module, parameters: Mapping[str, Tensor | None]) -> None:
    """Put tensors in place of parameters of a module; a recurrent one keeps a list of them, too."""
    store: dict[str, Any] = module._parameters
    for name, tensor in parameters.items():
        store[name] = tensor  # one by one, as a ScriptModule wants it
    if isinstance(module, nn.RNNBase) and parameters:
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the format that the strides say; of a 1x1 kernel, `is_contiguous` says both."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    plain = torch.empty(tensor.shape, device="meta")
    if last is None or tensor.stride() == plain.stride():
        return torch.contiguous_format
    return last if tensor.is_contiguous(memory_format=last) else torch.contiguous_format


def set_linear_width(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a convolution or fully connected layer a weight and bias of other widths."""
    for name, size in linear_sizes(layer, weight, int(getattr(layer, "groups", 1))).items():
        setattr(layer, name, size)
    set_tensor(layer, "weight", weight)
    if bias is not None:
        set_tensor(layer, "bias", bias)


def linear_sizes(layer: nn.Module, weight: Tensor, groups: int) -> dict[str, int]:
    """Return what the attributes of a convolution or fully connected layer say with a weight."""
    first, second = weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return {"out_features": first, "in_features": second}
    if getattr(layer, "transposed", False):
        return {"in_channels": first, "out_channels": second * groups}
    return {"out_channels": first, "in_channels": second * groups}


def narrow_channelwise(
    module: nn.Module, axis: int | None, times: int, width: int, index: Tensor
) -> nn.Module:
    """Return a copy of a channelwise module that is restricted to some of its channels.

    Args:
        module: BatchNorm, LayerNorm, PReLU, depthwise convolution, …
        axis: The axis of its parameters and buffers that counts channels; None if there is none.
        times: Outputs a channel.
        width: Number of channels of its input.
        index: The channels to keep, in order.
    """
    narrow = copy.deepcopy(module)
    if isinstance(narrow, nn.Unflatten):
        _, *rest = narrow.unflattened_size
        narrow.unflattened_size = (len(index) // prod(rest), *rest)
    if axis is not None:
        for part in narrow.modules():
            _narrow_tensors(part, axis, times, width, index)
            _narrow_attributes(part, axis, times, width, len(index))
    return narrow


def _narrow_tensors(module: nn.Module, axis: int, times: int, width: int, index: Tensor) -> None:
    """Restrict a module's own parameters and buffers."""
    outputs = (index[:, None] * times + torch.arange(times)).flatten()
    for name, tensor in own_tensors(module).items():
        size = tensor.shape[axis] if tensor.dim() > axis else 0
        if size in (width, width * times):
            entries = (outputs if size == width * times else index).to(tensor.device)
            set_tensor(module, name, tensor.detach().index_select(axis, entries))


def _narrow_attributes(module: nn.Module, axis: int, times: int, width: int, kept: int) -> None:
    """Change what a module says of its width."""
    for name in ("num_features", "num_channels", "num_parameters", "in_channels", "groups"):
        if vars(module).get(name) == width:
            setattr(module, name, kept)
    if vars(module).get("out_channels") == width * times:
        setattr(module, "out_channels", kept * times)  # noqa: B010
    shape = vars(module).get("normalized_shape")
    if isinstance(shape, tuple | list) and shape[axis] == width:
        narrowed = (*shape[:axis], kept, *shape[axis + 1 :])
        setattr(module, "normalized_shape", narrowed)  # noqa: B010


def become(module: nn.Module, other: nn.Module) -> None:
    """Make a module what another of its class is, wherever the module is referred to."""
    vars(module).clear()
    vars(module).update(vars(other))


def set_path(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a module, parameter or buffer at a dotted path, making the modules on the way."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
        if last == "weight" and isinstance(root, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)):
            for name, size in linear_sizes(root, value, int(getattr(root, "groups", 1))).items():
                setattr(root, name, size)
    elif isinstance(value, Tensor):
        root.register_buffer(last, value)
    elif last in root._modules:
        root._modules[last] = value
    else:
        root.add_module(last, value)


def multiply_adds(module: nn.Module, read: tuple[int, ...], made: tuple[int, ...], dim: int) -> int:
    """Return the multiply-adds of a call of a layer that multiplies by its weight.

    Args:
        module: The layer: each entry of its weight counts once a position.
        read: Shape of its input, whose positions those of a transposed convolution are.
        made: Shape of its output, whose positions those of all others are.
        dim: The channel dimension, which holds no positions.
    """
    positions, weight = read if isinstance(module, TRANSPOSED) else made, module.weight
    assert isinstance(weight, Tensor)
    return prod(positions) // positions[dim] * weight.numel()

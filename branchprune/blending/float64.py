"""Running a model in float64 without holding all of it in float64."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from branchprune.graph.held import copies_of_nothing
from branchprune.graph.layers import put_parameters

WIDE = torch.float64
Module = TypeVar("Module", bound=nn.Module)


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, in float64 if it holds floating-point numbers."""
    dtype = WIDE if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype)


def sharing_copy(module: Module) -> Module:
    """Return a copy with the same numbers in its parameters, none of which needs a gradient."""
    memo = copies_of_nothing(module)
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(module, memo)


def widen(module: nn.Module, but: Collection[nn.Module]) -> None:
    """Move a module to the CPU and float64 in place, but for the parameters of some parts."""
    kept = {part for each in but for part in each.modules()}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and part not in kept:
                wide = nn.Parameter(exact(parameter), requires_grad=False)
                put_parameters(part, {name: made.setdefault(parameter, wide)})
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = exact(buffer)


@contextmanager
def widened(modules: Collection[nn.Module]) -> Iterator[None]:
    """Give modules float64 parameters whenever they are called, for a `with` block."""
    kept: list[dict[str, nn.Parameter | None]] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
        for part in module.modules():
            store: dict[str, Any] = part._parameters
            kept.append(dict(store))
            put_parameters(part, {n: exact(p) for n, p in store.items() if p is not None})
        return tree_map_only(Tensor, _joined, args)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        for part in reversed([*module.modules()]):
            put_parameters(part, kept.pop())

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


class KeepsFloat64(TorchDispatchMode):
    """Within it, what is computed from float64 is float64, whatever forward casts it to.

    Constants that forward makes are float64, too, with the rounding of their own type: the traced
    graph holds them so. What forward writes into keeps its memory.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        operands = [*_operands((*args, *named.values()))]
        made = func == torch.ops.aten.lift_fresh.default  # `torch.tensor([0.1])`
        if made or not any(tensor.is_floating_point() for tensor in operands):
            return _all_joined(func(*args, **named))
        if any(tensor.dtype == WIDE for tensor in operands):
            written = {
                a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write
            }
            names = [argument.name for argument in func._schema.arguments]
            args = [
                x if n in written else _all_joined(x) for n, x in zip(names, args, strict=False)
            ]
            named = {n: x if n in written else _all_joined(x) for n, x in named.items()}
            if isinstance(named.get("dtype"), torch.dtype) and named["dtype"].is_floating_point:
                named["dtype"] = WIDE
        return func(*args, **named)


def _joined(tensor: Tensor) -> Tensor:
    return tensor.to(WIDE) if tensor.is_floating_point() and tensor.dtype != WIDE else tensor


def _operands(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among operands, which stand in no other nest than a list or a tuple."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _operands(value)


def _all_joined(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _joined(value)
    return type(value)(map(_all_joined, value)) if isinstance(value, list | tuple) else value

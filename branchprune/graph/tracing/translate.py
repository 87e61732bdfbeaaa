"""How a call of torch is written in a graph, always out of place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.tracing.aliases import replaced

OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "pow", "matmul")},
    **{name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{"div": operator.truediv, "remainder": operator.mod, "__getitem__": operator.getitem},
    **{f"__{name}__": getattr(operator, name) for name in ("eq", "ne", "floordiv", "matmul")},
    **{f"__{name}__": getattr(operator, f"__{name}__") for name in ("and", "or", "xor")},
}
"""Methods of tensors that are operators when they are given one operand."""
SWAPPED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmatmul__": operator.matmul,
}
UNARY: dict[str, Callable[..., Any]] = {"neg": operator.neg, "__invert__": operator.invert}


@dataclass
class Call:
    """A call as a graph holds it.

    Attributes:
        kind: "call_function" or "call_method".
        target: The function, or the name of the method.
        args: Arguments.
        kwargs: Arguments by name.
        changed: What the original call changes in place; None: nothing.
        copies: Whether the call itself still works in place, so that it needs a copy.
    """

    kind: str
    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    changed: Tensor | None = None
    copies: bool = False

    @property
    def in_place(self) -> bool:
        """Whether other tensors go into the one that is changed, which keeps its type."""
        first, *others = self.args or (None,)
        changes = self.changed is not None and first is self.changed and not self.copies
        return changes and any(isinstance(each, Tensor) for each in others)


def translate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return how a call that torch has been asked for is written in a graph.

    Args:
        function: The function or method, as a `TorchFunctionMode` sees it.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    name = getattr(function, "__name__", "")
    out = kwargs.get("out")
    if isinstance(out, Tensor):
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        return Call("call_function", function, args, kwargs, out)
    is_method = _is_method(function)
    if name.endswith("_") and not name.startswith("_"):
        return _out_of_place(function, name, args, kwargs, is_method)
    if is_method:
        return _method(name, args, kwargs)
    return _without_inplace(function, args, kwargs)


def _is_method(function: Callable[..., Any]) -> bool:
    return hasattr(function, "__objclass__") or function.__module__ == "torch._tensor"


def _method(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    if len(args) == 2 and not kwargs and (name in OPERATORS or name in SWAPPED):
        target: Callable[..., Any] = OPERATORS.get(name) or SWAPPED[name]
        return Call("call_function", target, args if name in OPERATORS else args[::-1], {})
    if len(args) == 1 and not kwargs and name in UNARY:
        return Call("call_function", UNARY[name], args, {})
    return Call("call_method", name, args, kwargs)


def _out_of_place(
    function: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_method: bool,
) -> Call:
    """Return the form of an operation in place that makes a new tensor, or needs a copy."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    changed = first if isinstance(first, Tensor) else None
    plain = name[:-1]
    if is_method and name == "copy_":
        return Call("call_function", replaced, args[:2], {}, changed)
    if is_method:
        if hasattr(Tensor, plain):
            call = _method(plain, args, kwargs)
            call.changed = changed
            return call
        return Call("call_method", name, args, kwargs, changed, copies=True)
    found = getattr(torch, plain, None) or getattr(nn.functional, plain, None)
    if found is not None:
        return Call("call_function", found, args, kwargs, changed)
    return Call("call_function", function, args, kwargs, changed, copies=True)


def _without_inplace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Return a call of a function that may have been told to work in place."""
    call = Call("call_function", function, args, kwargs)
    if not any(value is True for value in (*args, *kwargs.values())):
        return call
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return call
    if bound.arguments.get("inplace") is True and isinstance(args[0], Tensor):
        bound.arguments["inplace"] = False
        return Call("call_function", function, bound.args, bound.kwargs, args[0])
    return call

"""Sizes of tensors that compute as numbers do, and remember where they came from.

While forward is recorded, `x.shape[2]` is such a number. What is computed from it is recorded, too.
Where Python takes it as a plain number, as in an `if`, `int()` or `range()`, it is that of the
example, and a guard is recorded that refuses other ones.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from branchprune.graph.module_numbers import ModuleNumber


class Recording(Protocol):
    """What sizes need to know of the recorder they belong to."""

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """Record a function of sizes and tensors, and return its value."""

    def guard_number(self, size: Size) -> None:
        """Record that a size is the number that it is for the example."""

    def guard_branch(self, function: Callable[..., Any], *args: Any) -> bool:
        """Record that a condition comes out as it does for the example; return how."""


class Size:
    """A number that is recorded.

    Args:
        recording: Where.
        place: Gives the node that computes it, which is written when something reads it.
        number: What it is for the example.
    """

    def __init__(self, recording: Recording, place: Callable[[], fx.Node], number: float) -> None:
        self.recording, self.number = recording, number
        self._place = place

    @property
    def place(self) -> fx.Node:
        """The node that computes it."""
        return self._place()

    def plain(self) -> Any:
        """Return the number, with a guard that it stays."""
        self.recording.guard_number(self)
        return self.number

    def __repr__(self) -> str:
        return str(self.number)

    def __int__(self) -> int:
        return int(self.plain())

    def __index__(self) -> int:
        return operator.index(self.plain())

    def __float__(self) -> float:
        return float(self.plain())

    def __hash__(self) -> int:
        return hash(self.plain())

    def __bool__(self) -> bool:
        return self.recording.guard_branch(operator.ne, self, 0)

    def __format__(self, how: str) -> str:
        return format(self.number, how)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __deepcopy__(self, memo: object) -> Size:
        return self


class SizeInt(Size, torch.SymInt):
    """A whole number; torch takes it wherever it takes one."""


class SizeFloat(Size, torch.SymFloat):
    """Another number; torch takes it wherever it takes one."""

    def is_integer(self) -> bool:
        """Return whether it is a whole number, with a guard that it stays what it is."""
        return float(self.plain()).is_integer()


numbers.Number.register(Size)


def plain_number(value: Any) -> Any:
    """Return what a size is for the example; other values as they are."""
    value = value.number if isinstance(value, Size) else value
    return int(value) if isinstance(value, ModuleNumber) else value


def _computed(function: Callable[..., Any], swapped: bool) -> Callable[..., Any]:
    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int | float | Size | Tensor):
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return self.recording.compute(function, *pair)

    return method


def _compared(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Size, other: Any) -> Any:
        if isinstance(other, Tensor):
            return self.recording.compute(function, self, other)
        if not isinstance(other, int | float | Size):
            return NotImplemented
        return self.recording.guard_branch(function, self, other)

    return method


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Size, *args: Any) -> Any:
        return self.recording.compute(function, self, *args)

    return method


for _kind in (SizeInt, SizeFloat):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        _function = getattr(operator, _name)
        setattr(_kind, f"__{_name}__", _computed(_function, swapped=False))
        setattr(_kind, f"__r{_name}__", _computed(_function, swapped=True))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", _compared(getattr(operator, _name)))
    for _name in ("neg", "pos", "abs"):
        setattr(_kind, f"__{_name}__", _unary(getattr(operator, _name)))
    for _name in ("ceil", "floor", "trunc"):
        setattr(_kind, f"__{_name}__", _unary(getattr(math, _name)))
    for _name, _function in {"round": round}.items():
        setattr(_kind, f"__{_name}__", _unary(_function))
    for _name in (
        "__hash__",
        "__bool__",
        "__int__",
        "__float__",
        "__repr__",
        "__index__",
    ):
        setattr(_kind, _name, getattr(Size, _name))

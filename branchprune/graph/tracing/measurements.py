"""Sizes that forward asks for and computes with, and guards of what depends on them."""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from branchprune.graph.held import leaves, tensors_in
from branchprune.graph.module_numbers import distinct
from branchprune.graph.tracing.arguments import unseen
from branchprune.graph.tracing.dependence import refuse_values
from branchprune.graph.tracing.guards import same_branch, same_number, user_code
from branchprune.graph.tracing.results import Results
from branchprune.graph.tracing.sizes import Size, SizeFloat, SizeInt, plain_number
from branchprune.graph.tracing.translate import Call


class ValuesNeeded(Exception):
    """Forward asks for a number in a tensor that was run without numbers."""


class Measurements(Results):
    """Records what forward asks tensors for, and what it computes from that."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._guarded: set[Any] = set()

    def _attribute(self, func: Any, tensor: Tensor) -> Any:
        name = func.__self__.__name__
        value = func(self.plain(tensor))
        if name == "shape":
            return self._shape_of(tensor, getattr, "shape")
        if name == "ndim":
            return self._sized(value, "call_function", getattr, tensor, "ndim")
        if name in ("dtype", "device"):
            self._asked[user_code(), value] = tensor
            return value
        if not isinstance(value, Tensor):
            return value
        node = self.add("call_function", getattr, (self.node_of(tensor), name), {})
        return self.bind(value, node, None, [tensor])

    def _size(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        rest = [*rest, *kwargs.values()]
        plain = self.plain(tensor)
        if name == "size" and not rest:
            return self._shape_of(tensor, "size")
        if name == "size":
            dim = plain_number(rest[0])
            return self._sized(plain.size(dim), "call_method", "size", tensor, dim)
        if name == "__len__":
            return int(self._sized(len(plain), "call_method", "size", tensor, 0))
        name = {"nelement": "numel", "ndimension": "dim"}.get(name, name)
        return self._sized(getattr(plain, name)(), "call_method", name, tensor)

    def _shape_of(self, tensor: Tensor, target: Any, *rest: Any) -> torch.Size:
        shape = self.plain(tensor).shape
        sizes: list[Any] = [self._dim(tensor, target, rest, i, n) for i, n in enumerate(shape)]
        return torch.Size(sizes)

    def _dim(self, tensor: Tensor, target: Any, rest: tuple[Any, ...], i: int, n: int) -> SizeInt:
        @unseen
        def place() -> fx.Node:
            kind = "call_function" if callable(target) else "call_method"
            whole = self._number_node(kind, target, self.node_of(tensor), *rest)
            return self._number_node("call_function", getitem, whole, i)

        return SizeInt(self, place, n)

    def _sized(self, n: int, kind: str, target: Any, tensor: Tensor, *rest: Any) -> SizeInt:
        @unseen
        def place() -> fx.Node:
            return self._number_node(kind, target, self.node_of(tensor), *rest)

        return SizeInt(self, place, n)

    @unseen
    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """Record a function of sizes and tensors, and return its value."""
        if any(isinstance(a, Tensor) for a in args):
            nodes: tuple[Any, Any] = (self.nodes_of(args), {})
            result = function(*self.plain(args))
            return self.note(Call("call_function", function, args, {}), nodes, result)
        value = function(*map(plain_number, args))
        kind = SizeInt if isinstance(value, int) else SizeFloat
        return kind(
            self,
            lambda: self._number_node("call_function", function, *map(self.node_of, args)),
            value,
        )

    @unseen
    def guard_number(self, size: Size) -> None:
        """Record that a size is the number that it is for the example."""
        if size.place not in self._guarded:
            self._guarded.add(size.place)
            self.guard(same_number, size.place, size.number)

    @unseen
    def guard_branch(self, function: Callable[..., Any], *args: Any) -> bool:
        """Record that a condition comes out as it does for the example; return how."""
        result = bool(function(*map(plain_number, args)))
        nodes = tuple(map(self.node_of, args))
        key = (function, *map(distinct, nodes))
        if key not in self._guarded:
            self._guarded.add(key)
            self.guard(same_branch, self._number_node("call_function", function, *nodes), result)
        return result

    def _guard_sizes(self, arguments: Any) -> None:
        for leaf in leaves(arguments):
            if isinstance(leaf, Size):
                self.guard_number(leaf)

    def _value(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a number that stands in a tensor, if that follows from sizes and constants."""
        if self.meta:
            raise ValuesNeeded
        nodes = [self.node_of(tensor) for tensor in tensors_in((args, kwargs))]
        refuse_values(nodes, self.location())
        value = func(*self.plain(args), **self.plain(kwargs))
        if name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist"):
            node = self._number_node("call_method", name, nodes[0])
            self.guard(same_number, node, value)
        return value

"""A node of a graph as a function of its tensors, to be tried out at other widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from branchprune.graph.channels import resolve
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.nodes import DTYPE, measured, measured_tensor
from branchprune.graph.reasons import NOT_KNOWN
from branchprune.graph.rules.probe import Call, NotFollowed, Operand
from branchprune.graph.state import Analysis

Shapes = Callable[[fx.Node], tuple[int, ...]]


@dataclass(frozen=True)
class NodeCall:
    """What a node computes, if some of the tensors that it reads have other widths.

    Attributes:
        analysis: The walk.
        node: The node.
        dims: The dimension of the channels in each tensor that has them.
        run: How many consecutive entries belong to one channel there.
    """

    analysis: Analysis
    node: fx.Node
    dims: Mapping[fx.Node, int]
    run: int = 1

    @property
    def tensors(self) -> list[fx.Node]:
        """The tensors that the node reads."""
        return [n for n in self.node.all_input_nodes if self.analysis.is_tensor(n)]

    def operands(self) -> list[Operand]:
        """Return the tensors that it reads as operands."""
        return [self._operand(tensor, self.dims.get(tensor)) for tensor in self.tensors]

    def _operand(self, tensor: fx.Node, dim: int | None) -> Operand:
        dtype = tensor.meta.get(DTYPE, torch.float64)
        counts = dim is None and not dtype.is_floating_point
        value = self._value(tensor) if counts and tensor.op == "get_attr" else None
        return Operand(self.analysis.shape(tensor), dtype, dim, self.run, value)

    def _value(self, tensor: fx.Node) -> Tensor:
        """Return a buffer or constant, whose numbers are known."""
        name = str(tensor.target)
        path, _, last = name.rpartition(".")
        known = self.analysis.constants.get(name)
        value = getattr(self.analysis.model.get_submodule(path), last) if known is None else known
        assert isinstance(value, Tensor)
        return value.detach().cpu()

    def calls(self) -> list[Call]:
        """Return it as a function; a module as one in training and one in evaluation mode."""
        node = self.node
        if node.op == "call_module":
            module = self.analysis.module(node)
            if any(True for _ in (*module.parameters(), *module.buffers())):
                raise NotFollowed(NOT_KNOWN)
            return [self._call(_in_mode(module, training)) for training in (False, True)]
        if node.op == "call_method":
            return [self._call(_method(str(node.target)))]
        assert callable(node.target)
        return [self._call(node.target)]

    def _call(self, target: Callable[..., Any]) -> Call:
        def call(tensors: list[Tensor], channels: Tensor) -> Any:
            given = dict(zip(self.tensors, tensors, strict=True))
            args, kwargs = self._arguments(given, len(channels))
            return target(*args, **kwargs)

        return call

    def key(self) -> Hashable | None:
        """Return what nodes have in common that compute the same; None where that is not known."""
        operands, target = tuple(self.operands()), self.node.target
        described: Hashable = (self.node.op, target)
        if self.node.op == "call_module":
            described = _described(self.analysis.module(self.node))
        if described is None or any(operand.value is not None for operand in operands):
            return None
        names = {n: f"tensor {i}" for i, n in enumerate(self.tensors)}
        return (described, operands, *(repr(self._arguments(names, width)) for width in (2, 3)))

    def _arguments(self, tensors: Mapping[fx.Node, Any], width: int) -> tuple[Any, Any]:
        def shape(tensor: fx.Node) -> tuple[int, ...]:
            sizes = enumerate(self.analysis.shape(tensor))
            counted = width * self.run
            return tuple(counted if self._has_channels(tensor, d) else n for d, n in sizes)

        def given(each: Any) -> Any:
            if isinstance(each, fx.Node):
                return tensors[each] if each in tensors else number(each, shape)
            if isinstance(each, torch.dtype) and each.is_floating_point:
                return torch.float64
            return plain(each)

        return map_aggregate(self.node.args, given), map_aggregate(self.node.kwargs, given)

    def _has_channels(self, tensor: fx.Node, dim: int) -> bool:
        """Return whether the size of a tensor is the number of the channels that are tried."""
        layout = self.analysis.layout(tensor)
        if layout is None or layout.dim != dim:
            return False
        own, tried = resolve(layout.segments), map(self.analysis.layout, self.dims)
        return any(other is not None and resolve(other.segments) == own for other in tried)


def _method(name: str) -> Callable[..., Any]:
    return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)


def _in_mode(module: nn.Module, training: bool) -> nn.Module:
    return copy.deepcopy(module).train(training)


def _described(module: nn.Module) -> Hashable | None:
    """Return what two modules have in common that compute the same; None where that is unclear."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    plain = all(isinstance(value, int | float | str | tuple | None) for value in own.values())
    return (type(module), repr(own)) if plain and not module._modules else None


def number(node: fx.Node, shape: Shapes) -> Any:
    """Return the number, or whatever else is no tensor, that a node of a graph computes.

    Args:
        node: The node.
        shape: Returns the shape of a tensor.

    Raises:
        NotFollowed: It does not follow from shapes alone.
    """
    source, whole = measured(node), measured_tensor(node)
    if source is not None:
        return shape(source[0])[source[1]]
    if whole is not None:
        return torch.Size(shape(whole))
    if node.target in ("dim", "numel"):
        sizes = shape(node.all_input_nodes[0])
        return len(sizes) if node.target == "dim" else prod(sizes)
    if node.target is getattr:
        rank = len(shape(node.all_input_nodes[0]))
        known = {"dtype": torch.float64, "device": torch.device("cpu"), "ndim": rank}
        return known[str(node.args[1])]
    if node.op != "call_function" or not callable(node.target):
        raise NotFollowed("it is given a number that stands in a tensor")

    def given(each: Any) -> Any:
        return number(each, shape) if isinstance(each, fx.Node) else plain(each)

    return node.target(*map_aggregate(node.args, given), **map_aggregate(node.kwargs, given))


def plain(value: Any) -> Any:
    """Return a number that a module keeps as one that does not remember that."""
    return int(value) if isinstance(value, ModuleNumber) else value

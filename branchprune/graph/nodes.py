"""Nodes of a traced graph: what is recorded of them, and which numbers are sizes of tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

WHERE = "where"
"""Key in the `meta` of a node: the path of the module whose forward it is from."""
LINE = "line"
"""Key in the `meta` of a node: file and number of the line of the user's code that it is from."""
CHECKPOINTED = "checkpointed"
"""Key in the `meta` of a node that forward computes under `torch.utils.checkpoint`."""
DTYPE = "dtype"
"""Key in the `meta` of a node that computes a tensor: its type."""
IN_PLACE = "in place"
"""Key in the `meta` of a node whose result forward writes into the first tensor that it reads."""
CONSTANT = "_tensor_constant"
"""How a tensor that forward makes from plain numbers is named."""


@dataclass(frozen=True)
class Storage:
    """Where the numbers of a tensor lie.

    Attributes:
        key: The same for tensors that share memory.
        nbytes: Bytes of that memory.
    """

    key: int
    nbytes: int


@dataclass
class Recorded:
    """What is known of the nodes' values for the example.

    Attributes:
        shapes: Shape of every tensor; None for other values.
        lengths: Length of every tuple or list.
        macs: Multiply-adds of what is called and not looked into.
        storages: Where tensors lie as forward itself computes them, in place or not; those are left
            out that a graph has only since it works out of place.
    """

    shapes: dict[fx.Node, tuple[int, ...] | None] = field(default_factory=dict)
    lengths: dict[fx.Node, int] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)
    storages: dict[fx.Node, Storage] = field(default_factory=dict)


def asked_for_its_type(node: fx.Node) -> fx.Node | None:
    """Return the tensor of which a node reads dtype and device alone, as `x.type_as(y)` of y."""
    read = node.all_input_nodes
    if node.op == "call_method" and str(node.target).startswith("new_"):
        return read[0]
    return read[1] if node.target in ("type_as", "to") and len(read) == 2 else None


def argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """Return an argument of a call, which is given by its place or by one of its names."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def numbers_behind(node: fx.Node, *names: str) -> tuple[Any, ...]:
    """Return what a call is given behind its tensor: numbers one by one, or a list of them."""
    first, *rest = node.args[1:] or (argument(node, 1, *names),)
    return tuple(first) if isinstance(first, list | tuple) and not rest else (first, *rest)


def measured_tensor(shape: Any) -> fx.Node | None:
    """Return the tensor of which a value is the whole shape: `x.shape` or `x.size()`."""
    if not isinstance(shape, fx.Node):
        return None
    whole = shape.target is getattr and shape.args[1] == "shape"
    if whole or (shape.op == "call_method" and shape.target == "size" and len(shape.args) == 1):
        tensor = shape.args[0]
        return tensor if isinstance(tensor, fx.Node) else None
    return None


def measured(size: Any) -> tuple[fx.Node, int] | None:
    """Return the tensor and dimension of which a value is the size, if it plainly is one."""
    if not isinstance(size, fx.Node):
        return None
    if size.op == "call_method" and size.target == "size" and len(size.args) == 2:
        tensor, dim = size.args
    elif size.target is operator.getitem:
        tensor, dim = measured_tensor(size.args[0]), size.args[1]
    else:
        return None
    return (tensor, dim) if isinstance(tensor, fx.Node) and isinstance(dim, int) else None


def sources(number: fx.Node, is_tensor: Callable[[fx.Node], bool]) -> Iterator[tuple[fx.Node, int]]:
    """Yield the tensors and dimensions from whose sizes a number is computed."""
    seen, rest = {number}, [number]
    while rest:
        node = rest.pop()
        source = measured(node)
        if source is not None:
            yield source
            continue
        new = [n for n in node.all_input_nodes if not is_tensor(n) and n not in seen]
        seen.update(new)
        rest += new

"""Tensors that share memory while forward is recorded: what a change of one does to the others.

The wide path and its twin read the same tensors, so nothing may be changed under them: an operation
in place becomes one that makes a new tensor, and what shares memory with the changed tensor is
made anew from that. Which tensors are out of date, their version counters tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from branchprune.errors import PruneError
from branchprune.graph.nodes import DTYPE, Recorded, Storage

DERIVED = "derived"
"""Key in the `meta` of a node that is not forward's own, and goes if nothing reads it."""


@dataclass
class Known:
    """A tensor that is recorded.

    Attributes:
        tensor: The tensor.
        node: The node that computes it.
        version: Its version there.
        base: The tensor in whose memory it lies; None: in its own.
        path: The nodes by which it is taken out of that.
    """

    tensor: Tensor
    node: fx.Node
    version: int
    base: Known | None = None
    path: tuple[fx.Node, ...] = ()


def written(whole: Tensor, part: Tensor, value: Any) -> Tensor:
    """Write a value into a part of a tensor, and return the tensor.

    Args:
        whole: A tensor that nothing else reads.
        part: A view of it.
        value: A tensor or number.
    """
    part[...] = value
    return whole


def replaced(old: Tensor, new: Any) -> Tensor:
    """Return a value in the shape and dtype of a tensor, as `copy_` would leave it there."""
    return torch.empty_like(old).copy_(new)


def set_item(whole: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of a tensor with a value at an index, such as a mask."""
    whole = whole.clone()
    whole[index] = value
    return whole


class Aliases:
    """Knows the recorded tensors, and keeps those up to date that share memory.

    Args:
        graph: Where nodes are added.
        recorded: Where their shapes are noted.
    """

    def __init__(self, graph: fx.Graph, recorded: Recorded) -> None:
        self.graph, self.recorded = graph, recorded
        self._known: dict[int, Known] = {}

    def find(self, tensor: Tensor) -> Known | None:
        """Return what is known of a tensor."""
        return self._known.get(id(tensor))

    def add(
        self, tensor: Tensor, node: fx.Node, base: Tensor | None = None, *path: fx.Node
    ) -> None:
        """Note that a node computes a tensor, and of which it is a view."""
        origin = None if base is None else self._known[id(base)]
        node.meta[DTYPE] = tensor.dtype
        self.lies(node, tensor)
        self._known[id(tensor)] = Known(tensor, node, tensor._version, origin, path)

    def lies(self, node: fx.Node, tensor: Tensor) -> None:
        """Note that what a node computes lies where a tensor does, as forward runs."""
        key = _memory(tensor)
        nbytes = tensor.untyped_storage().nbytes() if key else 0
        # Of a kind without memory of its own, the objects are told apart.
        self.recorded.storages[node] = Storage(key or -id(tensor), nbytes)

    def base_of(self, tensor: Tensor, operands: list[Tensor]) -> Tensor | None:
        """Return the operand in whose memory a result lies."""
        own = _memory(tensor)
        found = [each for each in operands if id(each) in self._known and _memory(each) == own]
        return found[0] if own and found else None

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """Return the node of a tensor as it is now; None if it is not known.

        Raises:
            PruneError: It was changed in a way that is not recorded.
        """
        known = self._known.get(id(tensor))
        return None if known is None else self._fresh(known)

    def _fresh(self, known: Known) -> fx.Node:
        if known.version != known.tensor._version:
            if known.base is None:
                raise PruneError(
                    f"forward changes {known.node.name} in place where a trace does not see it: "
                    "leave the module out with `opaque`, or write to a new tensor"
                )
            self._take(known, self._fresh(known.base))
        return known.node

    def _take(self, known: Known, base: fx.Node) -> None:
        """Take a view out of its base once more."""
        known.path = self._again(known.path, base)
        known.node, known.version = known.path[-1], known.tensor._version

    def _again(self, path: tuple[fx.Node, ...], base: fx.Node) -> tuple[fx.Node, ...]:
        """Write the nodes that take a view out of its base once more, for another base."""
        made = {path[0].all_input_nodes[0]: base}
        for node in path:
            made[node] = self.graph.node_copy(node, lambda n: made.get(n, n))
            made[node].meta = {**node.meta, DERIVED: True}
            self.recorded.shapes[made[node]] = self.recorded.shapes[node]
            if node in self.recorded.lengths:
                self.recorded.lengths[made[node]] = self.recorded.lengths[node]
            if node in self.recorded.storages:
                self.recorded.storages[made[node]] = self.recorded.storages[node]
        return tuple(made[node] for node in path)

    def change(self, tensor: Tensor, node: fx.Node) -> None:
        """Note that a tensor was changed in place, and what it lies in with it.

        Args:
            tensor: The tensor, after the change.
            node: What computes its new numbers.
        """
        known = self._known[id(tensor)]
        node.meta[DTYPE] = tensor.dtype
        self.lies(node, tensor)
        if known.base is None:
            known.node, known.version = node, tensor._version
        else:  # it is taken out of its base again where it is read, as it lies in memory
            self._write_back(known, node)

    def _write_back(self, known: Known, value: fx.Node) -> None:
        """Write a changed view into its base."""
        base = known.base
        assert base is not None
        whole = self._derived("call_method", "clone", (base.node,), base)
        part = self._again(known.path, whole)[-1]
        new = self._derived("call_function", written, (whole, part, value), base)
        if base.base is None:
            base.node, base.version = new, base.tensor._version
        else:
            self._write_back(base, new)

    def _derived(self, kind: str, target: Any, args: tuple[Any, ...], of: Known) -> fx.Node:
        node = self.graph.create_node(kind, target, args)
        node.meta[DERIVED] = True
        self.recorded.shapes[node] = tuple(of.tensor.shape)
        self.lies(node, of.tensor)
        return node


def _memory(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # of a kind that has no memory of its own, such as a sparse one
        return 0

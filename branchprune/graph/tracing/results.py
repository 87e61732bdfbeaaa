"""What torch returns while forward is recorded: tensors that are known by their nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

from torch import Tensor, fx

from branchprune.graph.held import tensors_in
from branchprune.graph.macs_counter import MacsCounter
from branchprune.graph.nodes import IN_PLACE
from branchprune.graph.tracing.aliases import DERIVED
from branchprune.graph.tracing.arguments import Arguments, like, unseen
from branchprune.graph.tracing.dependence import refuse_counts
from branchprune.graph.tracing.guards import same_length, source_line
from branchprune.graph.tracing.translate import Call

COUNTED = ("unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit")
"""Functions and methods that give a number of tensors that follows from a size."""


class Results(Arguments):
    """Adds the nodes of calls, and knows what they return."""

    @unseen
    def note(
        self,
        call: Call,
        nodes: tuple[Any, Any],
        result: Any,
        counter: MacsCounter | None = None,
    ) -> Any:
        """Add the node of a call; return its result, its tensors known by their nodes.

        Args:
            call: The call.
            nodes: Its arguments with nodes in place of tensors and sizes.
            result: What it returned.
            counter: What has counted its multiply-adds; None: they are not counted here.
        """
        args, kwargs = nodes
        if call.copies:
            copy = self.add("call_method", "clone", (args[0],), {})
            copy.meta[DERIVED] = True
            self.recorded.shapes[copy] = self.recorded.shapes[args[0]]
            args = (copy, *args[1:])
        node = self.add(call.kind, call.target, tuple(args), kwargs)
        if call.in_place:
            node.meta[IN_PLACE] = True
        if counter is not None:
            self.recorded.macs[node] = counter.macs
        return self.bind(result, node, call.changed, [*tensors_in((call.args, call.kwargs))])

    @unseen
    def bind(
        self, value: Any, node: fx.Node, changed: Tensor | None, operands: list[Tensor]
    ) -> Any:
        """Note which node computes a value; return it, with new objects for what is no new tensor.

        Args:
            value: A tensor, or a nested structure of them.
            node: The node.
            changed: The tensor that the call changed in place; None: none.
            operands: What it read.
        """
        if isinstance(value, Tensor):
            return self._bind_tensor(value, node, changed, operands)
        if isinstance(value, tuple | list):
            self.recorded.lengths[node] = len(value)
            self._guard_length(node, len(value))
            parts = [self.bind(v, self._item(node, i), None, operands) for i, v in enumerate(value)]
            return like(value, parts)
        if isinstance(value, Mapping):
            for key, each in value.items():
                self.bind(each, self._item(node, key), None, operands)
        return value

    def _bind_tensor(
        self, value: Tensor, node: fx.Node, changed: Tensor | None, operands: list[Tensor]
    ) -> Tensor:
        self.recorded.shapes[node] = tuple(value.shape)
        if changed is not None:
            self.change(changed, node)
            return value
        if self.aliases.find(value) is not None or id(value) in self.state:
            value = value.detach()  # returned as it is: from here on, another name for it
        base = self.aliases.base_of(value, operands)
        self.alive.append(value)
        self.aliases.add(value, node, base, *_path(node))
        return value

    def _item(self, node: fx.Node, key: Any) -> fx.Node:
        item = self.add("call_function", getitem, (node, key), {})
        item.meta[DERIVED] = True
        return item

    def _guard_length(self, node: fx.Node, length: int) -> None:
        if getattr(node.target, "__name__", node.target) in COUNTED:
            self.guard(same_length, node, length)

    def change(self, tensor: Tensor, node: fx.Node) -> None:
        """Note a change in place; a buffer keeps it."""
        if id(tensor) in self.buffers:
            buffer = self.add("get_attr", self.state[id(tensor)], (), {})
            kept = self.add("call_method", "copy_", (buffer, node), {})
            self.recorded.shapes |= dict.fromkeys((buffer, kept), tuple(tensor.shape))
        self.aliases.change(tensor, node)

    def guard(self, check: Callable[..., Any], node: fx.Node, expected: Any) -> None:
        """Record one of `GUARDS` for the line of forward that runs.

        Args:
            check: The guard.
            node: The number, condition or tensors.
            expected: What it is for the example.
        """
        if not self.meta:
            refuse_counts(node)
        self.add("call_function", check, (node, expected, *source_line()), {})


def _path(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes by which a result is taken out of what a call reads."""
    path = [node]
    while path[0].meta.get(DERIVED) and path[0].target is getitem:
        path.insert(0, path[0].args[0])  # type: ignore[arg-type]
    return tuple(path)

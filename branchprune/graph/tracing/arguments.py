"""What forward gives to torch, as a graph holds it and as torch computes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import wraps
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchprune.errors import PruneError
from branchprune.graph.autocast import Region, set_regions
from branchprune.graph.held import held_tensors
from branchprune.graph.module_numbers import distinct
from branchprune.graph.nodes import CHECKPOINTED, CONSTANT, LINE, WHERE, Recorded
from branchprune.graph.tracing.aliases import DERIVED, Aliases
from branchprune.graph.tracing.dependence import kept
from branchprune.graph.tracing.guards import is_named, source_line, user_code, user_line
from branchprune.graph.tracing.side_effects import (
    is_checkpointed,
    refuse_generator,
    refuse_lost_gradient,
)
from branchprune.graph.tracing.sizes import Size, SizeInt, plain_number

HOLDABLE = (
    *(type(None), bool, int, float, str, complex, type(Ellipsis), torch.dtype, torch.device),
    *(torch.layout, torch.memory_format, fx.Node),
)
"""What the code of a graph can say."""


def unseen(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method ask torch for what is not recorded."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return call


class Arguments:
    """Adds nodes to a graph, and finds those of tensors, sizes and whatever holds them.

    Args:
        root: The whole model.
        inside: The part of it that is recorded; "" for all of it.
        constants: Tensors that are no parameters, by name; new ones are added.
        meta: Whether tensors are run without numbers.

    Attributes:
        graph: The graph.
        recorded: The shapes of its nodes.
        aliases: The tensors that are known.
        where: Paths of the modules whose forward runs, the innermost last.
        regions: Those of autocast that forward has entered, the innermost last.
        state: Paths of parameters and buffers by their ids.
        buffers: The ids of buffers.
        alive: What must not be freed, since it is known by its id.
        kept: The ids of tensors that were kept from an earlier call.
    """

    def __init__(
        self, root: nn.Module, inside: str, constants: dict[str, Tensor], meta: bool
    ) -> None:
        super().__init__()
        self.root, self.inside, self.constants, self.meta = root, inside, constants, meta
        self.part = root.get_submodule(inside)
        self.graph, self.recorded = fx.Graph(), Recorded()
        self.aliases = Aliases(self.graph, self.recorded)
        self.where: list[str] = []
        self.regions: list[Region] = []
        state = [*root.named_parameters(), *root.named_buffers()]
        self.state = {id(tensor): name for name, tensor in reversed(state)}
        self.buffers = {id(tensor) for tensor in root.buffers()}
        self.alive = [tensor for _, tensor in state]
        self.kept: set[int] = set()
        self._numbers: dict[Any, fx.Node] = {}
        self._asked: dict[tuple[Any, Any], Tensor] = {}
        self._moved: dict[int, Tensor] = {}
        self._held: set[int] | None = None

    def location(self) -> str:
        """Return the path of the module whose forward runs."""
        return self.where[-1] if self.where else "the model"

    def place(self) -> str:
        """Say which line of forward runs."""
        line, place = source_line()
        return f"at {line}{place}" if line else f"in {self.location()}"

    def add(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Any) -> fx.Node:
        """Add a node of what forward computes."""
        node = self.graph.create_node(kind, target, args, dict(kwargs))
        if self.where:
            node.meta[WHERE] = self.where[-1]
        node.meta[LINE] = user_line()
        set_regions(node, tuple(self.regions))
        if is_checkpointed():
            node.meta[CHECKPOINTED] = True
        self.recorded.shapes[node] = None
        if not torch.is_grad_enabled():
            refuse_lost_gradient(node, self.root, bool(self.inside), self.location())
        return node

    def _number_node(self, kind: str, target: Any, *args: Any) -> fx.Node:
        """Return the node of a number, the same one for the same arguments."""
        key = (kind, target, tuple(map(distinct, args)))
        if key not in self._numbers:
            self._numbers[key] = self.add(kind, target, args, {})
            self._numbers[key].meta[DERIVED] = True
        return self._numbers[key]

    @unseen
    def node_of(self, value: Any) -> Any:
        """Return an argument as a graph holds it, with nodes in place of tensors and sizes."""
        if isinstance(value, Size):
            return value.place
        if isinstance(value, Tensor):
            return self._tensor_node(value)
        if isinstance(value, torch.dtype | torch.device):
            return self._followed(value)
        if isinstance(value, tuple | list):
            return self._whole_shape(value) or self.nodes_of(value)
        if isinstance(value, Mapping):
            return {key: self.node_of(each) for key, each in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.node_of, (value.start, value.stop, value.step)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {
                f.name: self.node_of(getattr(value, f.name)) for f in dataclasses.fields(value)
            }
            return self.add("call_function", type(value), (), parts)
        refuse_generator(value, self.location())
        if not isinstance(value, HOLDABLE):
            raise PruneError(
                f"forward gives a {type(value).__name__} to a function of torch {self.place()}, "
                "which a graph cannot hold: leave the module out with `opaque`"
            )
        return value

    @unseen
    def nodes_of(self, value: tuple[Any, ...] | list[Any]) -> Any:
        """Return arguments as a graph holds them, one by one: they are no shape as a whole."""
        parts = [self.node_of(each) for each in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self.add("call_function", type(value), tuple(parts), {})
        return parts if isinstance(value, list) else tuple(parts)

    def _whole_shape(self, value: Any) -> fx.Node | None:
        """Return the node of a shape that is given on as a whole."""
        if not value or not all(isinstance(each, SizeInt) for each in value):
            return None
        places = [each.place for each in value]
        whole = places[0].args[0] if places[0].target is getitem else None
        if not isinstance(whole, fx.Node) or whole.target not in (getattr, "size"):
            return None
        rank = len(self.recorded.shapes[whole.all_input_nodes[0]] or ())
        right = [(p.target, p.args) == (getitem, (whole, i)) for i, p in enumerate(places)]
        return whole if all(right) and len(right) == rank else None

    def node_if_known(self, tensor: Tensor) -> fx.Node | None:
        """Return the node that computes a tensor; None if it is not recorded."""
        known = self.aliases.find(tensor)
        return None if known is None else known.node

    def _tensor_node(self, tensor: Tensor) -> fx.Node:
        node = self.aliases.node_of(tensor)
        if node is not None and id(tensor) in self.kept:
            raise kept(node.name, self.location())
        if node is None:
            node = self._state_node(tensor)
            self.recorded.shapes[node] = tuple(tensor.shape)
            self.alive.append(tensor)
            self.aliases.add(tensor, node)
        return node

    def _state_node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self.state:
            return self.add("get_attr", self.state[id(tensor)], (), {})
        if tensor.is_meta or not (self.meta or id(tensor) in self.held()):
            raise PruneError(
                f"forward makes a tensor {self.place()} where a trace does not see it: leave the "
                "module out with `opaque`, teach a function with `bp.teach`, or make a buffer of it"
            )
        return self.add("get_attr", self._constant(tensor), (), {})

    def held(self) -> set[int]:
        """Return the tensors that modules hold beside their parameters and buffers."""
        if self._held is None:
            self._held = {id(tensor) for tensor in held_tensors(self.root)}
        return self._held

    def _constant(self, tensor: Tensor) -> str:
        for name, known in self.constants.items():
            if known is tensor or (
                known.dtype == tensor.dtype
                and known.device == tensor.device
                and torch.equal(known, tensor)
            ):
                return name
        name = f"{CONSTANT}{len(self.constants)}"
        self.constants[name] = tensor.detach().clone()
        return name

    def _followed(self, value: torch.dtype | torch.device) -> Any:
        """Return the node of a dtype or device that forward has asked a tensor for.

        One that is named where it is used is not followed.
        """
        name = "dtype" if isinstance(value, torch.dtype) else "device"
        asked = self._asked.get((user_code(), value))
        if name == "device" and asked is None:
            asked = next((t for (_, v), t in reversed(self._asked.items()) if v == value), None)
        if asked is None or (isinstance(value, torch.dtype) and is_named(value)):
            return value
        return self._number_node("call_function", getattr, self.node_of(asked), name)

    @unseen
    def plain(self, value: Any) -> Any:
        """Return an argument as torch computes with it."""
        if isinstance(value, Size):
            return value.number
        if isinstance(value, Tensor):
            return self._without_numbers(value) if self.meta and not value.is_meta else value
        if isinstance(value, torch.Size):
            return torch.Size([plain_number(each) for each in value])
        if isinstance(value, tuple | list):
            return like(value, [self.plain(each) for each in value])
        if isinstance(value, dict):
            return {key: self.plain(each) for key, each in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.plain, (value.start, value.stop, value.step)))
        return value

    def _without_numbers(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._moved:
            self.alive.append(tensor)
            self._moved[id(tensor)] = tensor.to("meta")
        return self._moved[id(tensor)]


def like(value: Any, parts: list[Any]) -> Any:
    """Return parts in a collection of the kind of another."""
    if isinstance(value, list):
        return parts
    if hasattr(value, "_fields"):
        return type(value)(*parts)
    return type(value)(parts) if type(value) is not torch.Size else tuple(parts)

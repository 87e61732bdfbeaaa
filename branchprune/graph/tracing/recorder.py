"""Forward, recorded while it runs.

Forward runs on the example, and every call of torch passes through `Recorder`, which computes it
and adds a node. Tensors are plain tensors, so Python iterates, unpacks and asks for their type as
ever; only sizes are numbers that remember where they came from. Layers are recorded at their call,
by `calls`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from branchprune.errors import PruneError
from branchprune.graph.nodes import CHECKPOINTED, CONSTANT, WHERE, Recorded
from branchprune.graph.tracing.aliases import DERIVED, Aliases, set_item, written
from branchprune.graph.tracing.factories import CONSTANT_FACTORIES, FACTORIES
from branchprune.graph.tracing.guards import (
    is_named,
    same_branch,
    same_length,
    same_number,
    source_line,
    user_frame,
)
from branchprune.graph.tracing.side_effects import (
    is_checkpointed,
    refuse_counts,
    refuse_lost_gradient,
    refuse_values,
    state_is_changed,
)
from branchprune.graph.tracing.sizes import Size, SizeFloat, SizeInt, plain_number
from branchprune.graph.tracing.translate import Call, translate

NUMBERS = (
    *("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "__array__", "__contains__"),
    *("__bool__", "__int__", "__float__", "__index__", "__complex__"),
)
"""Functions and methods that ask for what stands in a tensor."""
FACTS = (
    *("is_floating_point", "is_complex", "is_contiguous", "stride", "element_size", "get_device"),
    *("storage_offset", "__hash__", "is_signed", "data_ptr", "untyped_storage", "is_inference"),
    *("__repr__", "__format__", "is_same_size", "__reduce_ex__", "is_conj", "is_neg", "is_set_to"),
    *("result_type", "can_cast", "promote_types", "is_tensor", "has_names", "__dir__"),
)
"""Functions and methods that ask for something else, which is taken for granted."""
COUNTED = ("unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit")
"""Functions and methods that give a number of tensors that follows from a size."""
NORMS = (F.batch_norm, F.instance_norm)
"""Functions whose result has the shape of their input, and that fail on one number a channel."""
HOLDABLE = (
    *(type(None), bool, int, float, str, complex, type(Ellipsis), torch.dtype, torch.device),
    *(torch.layout, torch.memory_format, fx.Node),
)


def unseen(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method ask torch for what is not recorded."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return method(*args, **kwargs)

    return call


class ValuesNeeded(Exception):
    """Forward asks for a number in a tensor that was run without numbers."""


class Recorder(TorchFunctionMode):
    """Records a forward that runs during a `with` block.

    Args:
        root: The whole model.
        inside: The part of it that is recorded; "" for all of it.
        constants: Tensors that are no parameters, by name; new ones are added.
        meta: Whether tensors are run without numbers.
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
        self.thread = threading.get_ident()
        state = [*root.named_parameters(), *root.named_buffers()]
        self.state = {id(tensor): name for name, tensor in reversed(state)}
        self.buffers = {id(tensor) for tensor in root.buffers()}
        self.alive = [tensor for _, tensor in state]
        self._numbers: dict[Any, fx.Node] = {}
        self._guarded: set[Any] = set()
        self._asked: dict[tuple[int, Any], Tensor] = {}
        self._moved: dict[int, Tensor] = {}
        self._held: set[int] | None = None

    # What torch is asked for

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args[0])
        if name in ("__set__", "__delete__"):
            raise PruneError(f"forward sets an attribute of a tensor {self.place()}")
        if name in ("size", "dim", "numel", "nelement", "ndimension", "__len__"):
            return self._size(name, args, kwargs)
        if name in NUMBERS:
            return self._value(func, name, args, kwargs)
        if name in FACTS:
            return func(*self.plain(args), **self.plain(kwargs))
        return self._operation(func, args, kwargs)

    def _operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(func, "__name__", "") == "__setitem__":
            return self._set_item(*args)
        if func in CONSTANT_FACTORIES and not self._is_traced((args, kwargs)):
            return self._made(func(*args, **kwargs))
        call = translate(func, args, kwargs)
        self._refuse_changed_parameter(call.changed)
        nodes = self.node_of(call.args), self.node_of(call.kwargs)
        result = self._run(func, self.plain(args), self.plain(kwargs))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self._guard_sizes((args, kwargs))
            return result
        return self.note(call, nodes, result)

    def _is_traced(self, arguments: Any) -> bool:
        """Return whether arguments are or follow tensors or sizes."""
        return any(
            isinstance(leaf, Tensor | Size)
            or (isinstance(leaf, torch.device | torch.dtype) and self._followed(leaf) is not leaf)
            for leaf in tree_leaves(arguments)
        )

    def _made(self, constant: Any) -> Any:
        """Note that forward has made a tensor of plain numbers."""
        self.alive.append(constant)
        self._attributes().add(id(constant))
        return constant

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in NORMS and args:
            return torch.empty_like(args[0]) if self.meta else args[0].clone()
        if self.meta and func in FACTORIES and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)

    @unseen
    def note(self, call: Call, nodes: tuple[Any, Any], result: Any) -> Any:
        """Add the node of a call; return its result, its tensors known by their nodes.

        Args:
            call: The call.
            nodes: Its arguments with nodes in place of tensors and sizes.
            result: What it returned.
        """
        args, kwargs = nodes
        if call.copies:
            copy = self._add("call_method", "clone", (args[0],), {})
            copy.meta[DERIVED] = True
            args = (copy, *args[1:])
        node = self._add(call.kind, call.target, tuple(args), kwargs)
        return self.bind(result, node, call.changed, [*self._tensors((call.args, call.kwargs))])

    def _add(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Any) -> fx.Node:
        node = self.graph.create_node(kind, target, args, dict(kwargs))
        if self.where:
            node.meta[WHERE] = self.where[-1]
        if is_checkpointed():
            node.meta[CHECKPOINTED] = True
        self.recorded.shapes[node] = None
        if not torch.is_grad_enabled():
            refuse_lost_gradient(node, self.root, bool(self.inside), self.location())
        return node

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
            return _like(value, parts)
        if isinstance(value, Mapping):
            for key, each in value.items():
                self.bind(each, self._item(node, key), None, operands)
        return value

    def _bind_tensor(
        self, value: Tensor, node: fx.Node, changed: Tensor | None, operands: list[Tensor]
    ) -> Tensor:
        self.recorded.shapes[node] = tuple(value.shape)
        if changed is not None:
            self._change(changed, node)
            return value
        if self.aliases.find(value) is not None or id(value) in self.state:
            value = value.detach()  # returned as it is: from here on, another name for it
        base = self.aliases.base_of(value, operands)
        self.alive.append(value)
        self.aliases.add(value, node, base, *_path(node))
        return value

    def _item(self, node: fx.Node, key: Any) -> fx.Node:
        item = self._add("call_function", getitem, (node, key), {})
        item.meta[DERIVED] = True
        return item

    def _guard_length(self, node: fx.Node, length: int) -> None:
        if getattr(node.target, "__name__", node.target) in COUNTED:
            self._guard(same_length, node, length)

    def _set_item(self, whole: Tensor, index: Any, value: Any) -> None:
        self._refuse_changed_parameter(whole)
        before, at, new = (self.node_of(each) for each in (whole, index, value))
        whole[self.plain(index)] = self.plain(value)
        if any(isinstance(leaf, Tensor | bool) for leaf in _index_leaves(index)):
            node = self._add("call_function", set_item, (before, at, new), {})
        else:
            copy = self._add("call_method", "clone", (before,), {})
            part = self._add("call_function", getitem, (copy, at), {})
            node = self._add("call_function", written, (copy, part, new), {})
            self.recorded.shapes[copy] = tuple(whole.shape)
            self.recorded.shapes[part] = tuple(self.plain(whole)[self.plain(index)].shape)
        self.recorded.shapes[node] = tuple(whole.shape)
        self._change(whole, node)

    def _change(self, tensor: Tensor, node: fx.Node) -> None:
        """Note a change in place; a buffer keeps it."""
        if id(tensor) in self.buffers:
            buffer = self._add("get_attr", self.state[id(tensor)], (), {})
            kept = self._add("call_method", "copy_", (buffer, node), {})
            self.recorded.shapes |= dict.fromkeys((buffer, kept), tuple(tensor.shape))
        self.aliases.change(tensor, node)

    # What Python is told of a tensor

    def _attribute(self, func: Any, tensor: Tensor) -> Any:
        name = func.__self__.__name__
        value = func(self.plain(tensor))
        if name == "shape":
            return self._shape_of(tensor, getattr, "shape")
        if name == "ndim":
            return self._sized(value, "call_function", getattr, tensor, "ndim")
        if name in ("dtype", "device"):
            self._asked[id(user_frame()), value] = tensor
            return value
        if not isinstance(value, Tensor):
            return value
        node = self._add("call_function", getattr, (self.node_of(tensor), name), {})
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
        return torch.Size([self._dim(tensor, target, rest, i, n) for i, n in enumerate(shape)])

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

    def _number_node(self, kind: str, target: Any, *args: Any) -> fx.Node:
        """Return the node of a number, the same one for the same arguments."""
        key = (kind, target, args)
        if key not in self._numbers:
            self._numbers[key] = self._add(kind, target, args, {})
            self._numbers[key].meta[DERIVED] = True
        return self._numbers[key]

    # What is computed from sizes

    @unseen
    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """Record a function of sizes and tensors, and return its value."""
        if any(isinstance(a, Tensor) for a in args):
            nodes = self.node_of(args), {}
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
            self._guard(same_number, size.place, size.number)

    @unseen
    def guard_branch(self, function: Callable[..., Any], *args: Any) -> bool:
        """Record that a condition comes out as it does for the example; return how."""
        result = bool(function(*map(plain_number, args)))
        nodes = tuple(map(self.node_of, args))
        if (function, nodes) not in self._guarded:
            self._guarded.add((function, nodes))
            self._guard(same_branch, self._number_node("call_function", function, *nodes), result)
        return result

    def _guard(self, check: Callable[..., Any], node: fx.Node, expected: Any) -> None:
        if not self.meta:
            refuse_counts(node)
        self._add("call_function", check, (node, expected, *source_line()), {})

    def _guard_sizes(self, arguments: Any) -> None:
        for leaf in tree_leaves(arguments):
            if isinstance(leaf, Size):
                self.guard_number(leaf)

    def _value(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a number that stands in a tensor, if that follows from sizes and constants."""
        if self.meta:
            raise ValuesNeeded
        nodes = [self.node_of(tensor) for tensor in self._tensors((args, kwargs))]
        refuse_values(nodes, self.location())
        value = func(*self.plain(args), **self.plain(kwargs))
        if name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist"):
            node = self._number_node("call_method", name, nodes[0])
            self._guard(same_number, node, value)
        return value

    # What is given to a node

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
            return self._whole_shape(value) or self._sequence(value)
        if isinstance(value, Mapping):
            return {key: self.node_of(each) for key, each in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.node_of, (value.start, value.stop, value.step)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {
                f.name: self.node_of(getattr(value, f.name)) for f in dataclasses.fields(value)
            }
            return self._add("call_function", type(value), (), parts)
        if not isinstance(value, HOLDABLE):
            raise PruneError(
                f"forward gives a {type(value).__name__} to a function of torch {self.place()}, "
                "which a graph cannot hold: leave the module out with `opaque`"
            )
        return value

    def _sequence(self, value: tuple[Any, ...] | list[Any]) -> Any:
        parts = [self.node_of(each) for each in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._add("call_function", type(value), tuple(parts), {})
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

    def _tensor_node(self, tensor: Tensor) -> fx.Node:
        node = self.aliases.node_of(tensor)
        if node is None:
            node = self._state_node(tensor)
            self.recorded.shapes[node] = tuple(tensor.shape)
            self.alive.append(tensor)
            self.aliases.add(tensor, node)
        return node

    def _state_node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self.state:
            return self._add("get_attr", self.state[id(tensor)], (), {})
        if tensor.is_meta or not (self.meta or id(tensor) in self._attributes()):
            raise PruneError(
                f"forward makes a tensor {self.place()} where a trace does not see it: leave the "
                "module out with `opaque`, teach a function with `bp.teach`, or make a buffer of it"
            )
        return self._add("get_attr", self._constant(tensor), (), {})

    def _attributes(self) -> set[int]:
        """Return the tensors that modules hold beside their parameters and buffers."""
        if self._held is None:
            values = [vars(module) for module in self.root.modules()]
            self._held = {id(v) for v in tree_leaves(values) if isinstance(v, Tensor)}
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
        asked = self._asked.get((id(user_frame()), value))
        if name == "device" and asked is None:
            asked = next((t for (_, v), t in reversed(self._asked.items()) if v == value), None)
        if asked is None or (name == "dtype" and is_named(value)):
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
            return _like(value, [self.plain(each) for each in value])
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

    def _tensors(self, arguments: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]

    # Errors

    def _refuse_changed_parameter(self, tensor: Tensor | None) -> None:
        if tensor is not None and id(tensor) in self.state and id(tensor) not in self.buffers:
            raise state_is_changed(self.state[id(tensor)])

    def location(self) -> str:
        """Return the path of the module whose forward runs."""
        return self.where[-1] if self.where else "the model"

    def place(self) -> str:
        """Say which line of forward runs."""
        line, place = source_line()
        return f"at {line}{place}" if line else f"in {self.location()}"


def _like(value: Any, parts: list[Any]) -> Any:
    """Return parts in a collection of the kind of another."""
    if isinstance(value, list):
        return parts
    if hasattr(value, "_fields"):
        return type(value)(*parts)
    return type(value)(parts) if type(value) is not torch.Size else tuple(parts)


def _path(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes by which a result is taken out of what a call reads."""
    path = [node]
    while path[0].meta.get(DERIVED) and path[0].target is getitem:
        path.insert(0, path[0].args[0])  # type: ignore[arg-type]
    return tuple(path)


def _index_leaves(index: Any) -> list[Any]:
    """Return the parts of an index; a list stands for a tensor, as torch takes it."""
    items = index if isinstance(index, tuple) else (index,)
    return [torch.empty(0) if isinstance(item, list) else item for item in items]

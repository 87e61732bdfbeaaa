"""Forward, recorded while it runs.

Forward runs on the example, and every call of torch passes through `Recorder`, which computes it
and adds a node. Tensors are plain tensors, so Python iterates, unpacks and asks for their type as
ever; only sizes are numbers that remember where they came from. Layers are recorded at their call,
by `calls`.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from branchprune.errors import PruneError
from branchprune.graph.held import leaves, tensors_in
from branchprune.graph.macs_counter import MacsCounter
from branchprune.graph.module_numbers import numbers_in
from branchprune.graph.tracing.aliases import set_item, written
from branchprune.graph.tracing.factories import CONSTANT_FACTORIES, FACTORIES
from branchprune.graph.tracing.measurements import Measurements
from branchprune.graph.tracing.side_effects import state_is_changed
from branchprune.graph.tracing.sizes import Size
from branchprune.graph.tracing.translate import translate
from branchprune.graph.tracing.without_numbers import function_output

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

MULTIPLYING = frozenset(
    "linear matmul __matmul__ __rmatmul__ bmm mm mv addmm baddbmm addbmm einsum tensordot bilinear "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d chain_matmul "
    "scaled_dot_product_attention multi_head_attention_forward convolution".split()
)
"""Functions whose multiply-adds count."""
NORMS = (F.batch_norm, F.instance_norm)
"""Functions whose result has the shape of their input, and that fail on one number a channel."""


class Recorder(Measurements, TorchFunctionMode):
    """Records a forward that runs during a `with` block; see `Arguments` for what it is given."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.thread = threading.get_ident()

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
            for number in numbers_in((args, kwargs)):
                number.take()
            return self._made(func(*args, **kwargs))
        call = translate(func, args, kwargs)
        self._refuse_changed_parameter(call.changed)
        nodes = self.nodes_of(call.args), self.node_of(call.kwargs)
        name = getattr(func, "__name__", "")
        counter = MacsCounter() if name in MULTIPLYING else None
        with counter or nullcontext():
            result = self._run(func, self.plain(args), self.plain(kwargs))
        if not any(True for _ in tensors_in(result)):
            self._guard_sizes((args, kwargs))
            return result
        return self.note(call, nodes, result, counter)

    def _is_traced(self, arguments: Any) -> bool:
        """Return whether arguments are or follow tensors or sizes."""
        return any(
            isinstance(leaf, Tensor | Size)
            or (isinstance(leaf, torch.device | torch.dtype) and self._followed(leaf) is not leaf)
            for leaf in leaves(arguments)
        )

    def _made(self, constant: Any) -> Any:
        """Note that forward has made a tensor of plain numbers."""
        self.alive.append(constant)
        self.held().add(id(constant))
        return constant

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in NORMS and args:
            return args[0].clone()
        name = getattr(func, "__name__", "")
        quick = function_output(name, args, kwargs) if self.meta else None
        if quick is not None:
            return quick
        if self.meta and func in FACTORIES and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)

    def _set_item(self, whole: Tensor, index: Any, value: Any) -> None:
        self._refuse_changed_parameter(whole)
        before, at, new = (self.node_of(each) for each in (whole, index, value))
        whole[self.plain(index)] = self.plain(value)
        if any(isinstance(leaf, Tensor | bool) for leaf in _index_leaves(index)):
            node = self.add("call_function", set_item, (before, at, new), {})
        else:
            copy = self.add("call_method", "clone", (before,), {})
            part = self.add("call_function", getitem, (copy, at), {})
            node = self.add("call_function", written, (copy, part, new), {})
            self.recorded.shapes[copy] = tuple(whole.shape)
            self.recorded.shapes[part] = tuple(self.plain(whole)[self.plain(index)].shape)
        self.recorded.shapes[node] = tuple(whole.shape)
        self.change(whole, node)

    def _refuse_changed_parameter(self, tensor: Tensor | None) -> None:
        if tensor is not None and id(tensor) in self.state and id(tensor) not in self.buffers:
            raise state_is_changed(self.state[id(tensor)])


def _index_leaves(index: Any) -> list[Any]:
    """Return the parts of an index; a list stands for a tensor, as torch takes it."""
    items = index if isinstance(index, tuple) else (index,)
    return [torch.empty(0) if isinstance(item, list) else item for item in items]

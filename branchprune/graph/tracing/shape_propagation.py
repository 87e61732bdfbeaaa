"""Running a traced graph on an example, to learn the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import (
    Example,
    example_inputs,
    on_device,
    own_buffers,
    put,
    training_mode,
)
from branchprune.graph.nodes import Recorded

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Recorder(fx.Interpreter):
    """Runs a graph and notes what it meets."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        recorded: Recorded,
        unseen: Collection[str],
        meta: bool,
    ) -> None:
        super().__init__(model, graph=graph)
        self.recorded, self.unseen, self.meta = recorded, unseen, meta
        self.counted: FlopCounterMode | None = None
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.current = ""
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its shape."""
        self.current = f"{getattr(n.target, '__name__', n.target)}"
        value = super().run_node(n)
        self.recorded.shapes[n] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, tuple | list):
            self.recorded.lengths[n] = len(value)
        if n.op == "call_module" and self.counted is not None:
            self.recorded.macs[n] = self.counted.get_total_flops() // 2
        return value

    def fetch_attr(self, target: str) -> Any:
        """Return a parameter, buffer or constant."""
        value = super().fetch_attr(target)
        return value.to("meta") if self.meta and isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module; a norm's shape is its input's, which meta tensors are slow to find."""
        self.counted = FlopCounterMode(display=False) if target in self.unseen else None
        args, kwargs = tree_map_only(list, list, (args, kwargs), is_leaf=_is_list)
        with self.counted or nullcontext():
            return self._call(target, args, kwargs)

    def _call(self, target: str, args: Any, kwargs: Any) -> Any:
        norm = self.modules[target]
        known = self.meta and type(norm) in _NORMS and len(args) == 1
        if known and args[0].shape[1:2] == (norm.num_features,):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, which may change a list that it is given, as in ordinary code."""
        return super().call_function(
            target, tree_map_only(list, list, args, is_leaf=_is_list), kwargs
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def record(
    model: nn.Module,
    graph: fx.Graph,
    example: Example,
    recorded: Recorded,
    unseen: Collection[str] = (),
) -> None:
    """Run a graph on an example and note the shape of every node's output.

    Only shapes are computed where that is possible, else the numbers too.

    Args:
        model: The whole model, whose modules the graph names.
        graph: The graph of the model or of a part of it.
        example: An example of the graph's inputs.
        recorded: Where to note it.
        unseen: Paths of modules that are not looked into, whose multiply-adds are counted.

    Raises:
        PruneError: The model does not accept the example; the layer is named.
    """
    try:
        with _on_meta(model):
            recorder = _Recorder(model, graph, recorded, unseen, meta=True)
            _run(recorder, example_inputs(_meta(example)))
    except Exception:
        _record_numbers(model, graph, example, recorded, unseen)


def _meta(example: Example) -> Example:
    moved: Example = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example)
    return moved


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """Replace a model's parameters and buffers by ones without numbers, for a `with` block."""
    stores: list[dict[str, Any]] = []
    for module in model.modules():
        stores += [module._parameters, module._buffers]
    before = [dict(store) for store in stores]
    try:
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = torch.empty_like(tensor, device="meta")
        yield
    finally:
        for store, tensors in zip(stores, before, strict=True):
            put(store, tensors)


def _run(recorder: _Recorder, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    args, kwargs = inputs
    names = [str(n.target) for n in recorder.graph.nodes if n.op == "placeholder"]
    values = [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]
    with training_mode(recorder.module, False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        recorder.run(*values)


def _record_numbers(
    model: nn.Module,
    graph: fx.Graph,
    example: Example,
    recorded: Recorded,
    unseen: Collection[str],
) -> None:
    recorder = _Recorder(model, graph, recorded, unseen, meta=False)
    inputs = tree_map_only(Tensor, Tensor.clone, example_inputs(on_device(example, model)))
    try:
        with own_buffers(model):
            _run(recorder, inputs)
    except Exception as error:
        values = tree_leaves(inputs)
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in values]
        raise PruneError(
            f"the example (shape {shapes[0] if len(shapes) == 1 else shapes}) does not pass "
            f"through the model: it fails at {recorder.current}: {first_line(error)}"
        ) from error

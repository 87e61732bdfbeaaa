"""From a model to its graphs: one for training, one for evaluation.

Forward asks `self.training`, so it is recorded in both modes.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import getitem, is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from branchprune.errors import PruneError, first_line
from branchprune.graph.inputs import (
    Example,
    call,
    example_inputs,
    on_device,
    own_generators,
    put,
    training_mode,
    untouched,
)
from branchprune.graph.nodes import CHECKPOINTED, WHERE, Recorded
from branchprune.graph.tracing.aliases import DERIVED
from branchprune.graph.tracing.calls import Calls
from branchprune.graph.tracing.guards import MACHINERY, same_branch, same_length
from branchprune.graph.tracing.recorder import Recorder
from branchprune.graph.tracing.side_effects import (
    Attributes,
    Draws,
    no_autocast,
    state_is_changed,
)
from branchprune.graph.tracing.sizes import SizeFloat, SizeInt


@dataclass
class Traced:
    """What a trace has found.

    Attributes:
        graphs: The graphs by `training` flag; the same object twice if the modes do not differ.
        recorded: Shapes of the nodes' values for the example, and their costs.
        constants: Tensors that forward makes from plain numbers or that modules hold beside
            parameters and buffers, by the name that the graphs have for them.
    """

    graphs: dict[bool, fx.Graph] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)
    constants: dict[str, Tensor] = field(default_factory=dict)


def trace(
    model: nn.Module,
    example: Example,
    inside: str = "",
    opaque: Collection[nn.Module] = (),
    counted: Callable[[nn.Module], bool] = lambda _: False,
) -> Traced:
    """Record the graph of a model, or of a part of it, in training and in evaluation mode.

    Forward runs on the example, without numbers where that is possible. Layers are run in
    evaluation mode, so that one example is enough; nothing of the model is changed.

    Args:
        model: The network.
        example: An example input of the part, which says which arguments of `forward` are given.
        inside: Path of the part; "" for the whole model. The graphs name modules by their paths
            in the whole model.
        opaque: Modules that are not looked into.
        counted: Whether the multiply-adds of a module that is not looked into are counted.

    Raises:
        PruneError: The model does not accept the example, or `forward` does something that cannot
            be recorded.
    """
    found = Traced()
    run = partial(_trace_once, model, example, inside, opaque, counted, found)
    for training in (False, True):
        with training_mode(model, training):
            found.graphs[training] = run()
    evaluation, train = found.graphs[False], found.graphs[True]
    if str(train) == str(evaluation):
        for node, twin in zip(evaluation.nodes, train.nodes, strict=True):
            node.meta |= {k: v for k, v in twin.meta.items() if k == CHECKPOINTED}
        found.graphs[True] = evaluation
    return found


def differing_modules(graphs: Mapping[bool, fx.Graph]) -> tuple[str, ...]:
    """Return the paths of the modules whose forward is traced differently in the two modes."""
    if graphs[True] is graphs[False]:
        return ()
    steps: dict[bool, dict[str, list[object]]] = {True: {}, False: {}}
    for training, graph in graphs.items():
        for node in graph.nodes:
            plain = fx.map_arg((node.args, node.kwargs), lambda _: None)
            step = (node.op, node.target, repr(plain))
            if where := node.meta.get(WHERE):
                steps[training].setdefault(where, []).append(step)
    paths = dict.fromkeys((*steps[True], *steps[False]))
    return tuple(path for path in paths if steps[True].get(path) != steps[False].get(path))


def _trace_once(
    model: nn.Module,
    example: Example,
    inside: str,
    opaque: Collection[nn.Module],
    counted: Callable[[nn.Module], bool],
    found: Traced,
) -> fx.Graph:
    """Record forward in the mode in which the model is: without numbers, else with them."""
    try:
        recorder = _record(model, inside, example, opaque, counted, found, meta=True)
    except PruneError:
        raise
    except Exception:  # of a forward that asks for numbers, or that cannot do without
        recorder = _record(model, inside, example, opaque, counted, found, meta=False)
    _drop_unread(recorder.graph)
    recorder.graph.lint()
    found.recorded.shapes |= recorder.recorded.shapes
    found.recorded.lengths |= recorder.recorded.lengths
    found.recorded.macs |= recorder.recorded.macs
    return recorder.graph


def _record(
    model: nn.Module,
    inside: str,
    example: Example,
    opaque: Collection[nn.Module],
    counted: Callable[[nn.Module], bool],
    found: Traced,
    meta: bool,
    locates: bool = False,
) -> Recorder:
    part = model.get_submodule(inside)
    bound = _bound(part, example if meta else on_device(example, model))
    with _state(model, meta), untouched(part), own_generators(part.parameters()):
        recorder = Recorder(model, inside, found.constants, meta)
        calls = Calls(recorder, opaque, counted)
        state, attributes, draws = _stored(part), Attributes(part), Draws(torchs=meta)
        calls.locates = draws if locates else None
        error = None
        with torch.enable_grad(), no_autocast(recorder.location), calls.recorded():
            args, kwargs = _inputs(recorder, bound, meta)
            try:
                with recorder, warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                    output = part.forward(*args, **kwargs)
                    recorder.graph.output(recorder.node_of(output))
            except Exception as raised:
                error = raised
        if error is not None:
            known = meta or isinstance(error, PruneError)
            raise error if known else _failed(part, example, calls, error) from error
        moved = draws.moved()
        _refuse_assigned(part, state)
        attributes.refuse(calls.wholes)
    if moved and not locates:
        return _record(model, inside, example, opaque, counted, found, meta, locates=True)
    draws.refuse(recorder.location())
    return recorder


def _stored(part: nn.Module) -> dict[str, Tensor | None]:
    """Return the parameters and buffers of a module by their paths."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in part.named_modules()
        for name, value in (*module._parameters.items(), *module._buffers.items())
    }


def _refuse_assigned(part: nn.Module, before: Mapping[str, Tensor | None]) -> None:
    """Raise a PruneError if forward has put another tensor in place of a parameter or buffer."""
    for name, value in _stored(part).items():
        if value is not before.get(name):
            raise state_is_changed(name)


def _bound(part: nn.Module, example: Example) -> inspect.BoundArguments:
    """Return the example's inputs by the names of forward's arguments."""
    args, kwargs = example_inputs(example)
    try:
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise PruneError(f"example does not fit {type(part).__name__}.forward: {error}") from error
    for name, parameter in bound.signature.parameters.items():
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind)
        if stars and bound.arguments.get(name):
            raise PruneError(
                f"the example gives {type(part).__name__}.forward arguments by {stars}{name}, "
                "into which a trace does not see: name them in forward, or prune a part that "
                "has names for them with `inside`"
            )
    return bound


def _inputs(
    recorder: Recorder, bound: inspect.BoundArguments, meta: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of forward, each known by a node of its own."""
    for name, value in bound.arguments.items():
        collects = bound.signature.parameters[name].kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        if not collects:
            node = recorder.graph.placeholder(name)
            bound.arguments[name] = _input(recorder, name, node, value, meta)
    return bound.args, bound.kwargs


def _input(recorder: Recorder, name: str, node: fx.Node, value: Any, meta: bool) -> Any:
    """Return an input that is known by a node, or a copy of it."""
    recorder.recorded.shapes[node] = None
    if isinstance(value, Tensor):
        copy = value.to("meta") if meta else value.clone()
        return recorder.bind(copy, node, None, [])
    if isinstance(value, bool | str | None):
        what = f"the argument {name}, which is {value!r} in the example"
        test = (is_, node, None) if value is None else (_equals, node, value)
        check = recorder.graph.call_function(test[0], test[1:])
        guard = recorder.graph.call_function(same_branch, (check, True, what, ""))
        recorder.recorded.shapes |= {check: None, guard: None}
        return value
    if isinstance(value, int | float):
        return (SizeInt if isinstance(value, int) else SizeFloat)(recorder, lambda: node, value)
    if isinstance(value, list | tuple | dict):
        return _collection(recorder, name, node, value, meta)
    raise PruneError(
        f"the example gives {type(value).__name__} for the argument {name}, into which a trace "
        "does not see: give tensors, numbers, strings, and lists, tuples or dictionaries of them"
    )


def _collection(recorder: Recorder, name: str, node: fx.Node, value: Any, meta: bool) -> Any:
    what = f"the argument {name}"
    guard = recorder.graph.call_function(same_length, (node, len(value), what, ""))
    recorder.recorded.shapes[guard] = None
    recorder.recorded.lengths[node] = len(value)

    def part(key: Any, each: Any) -> Any:
        item = recorder.graph.call_function(getitem, (node, key))
        item.meta[DERIVED] = True
        return _input(recorder, name, item, each, meta)

    if isinstance(value, dict):
        return {key: part(key, each) for key, each in value.items()}
    parts = [part(i, each) for i, each in enumerate(value)]
    return parts if isinstance(value, list) else tuple(parts)


def _equals(value: object, expected: object) -> bool:
    """Return whether an argument is that of the example."""
    return type(value) is type(expected) and value == expected


@contextmanager
def _state(model: nn.Module, meta: bool) -> Iterator[None]:
    """Give a model parameters and buffers without gradients, and perhaps without numbers.

    Those that are one stay one.
    """
    stores = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    before = [dict(store) for store in stores]
    made: dict[int, Tensor] = {}
    buffers = {id(b) for b in model.buffers()}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            plain = tensor.detach()
            plain = torch.empty_like(plain, device="meta") if meta else plain
            made[id(tensor)] = plain.clone() if id(tensor) in buffers and not meta else plain
        return made[id(tensor)]

    try:
        for store in stores:
            put(store, {n: t if t is None else stand_in(t) for n, t in store.items()})
        yield
    finally:
        for store, tensors in zip(stores, before, strict=True):
            put(store, tensors)


def _drop_unread(graph: fx.Graph) -> None:
    """Remove nodes that nothing reads and that forward has not asked for itself."""
    for node in [*reversed(graph.nodes)]:
        if node.meta.get(DERIVED) and not node.users:
            graph.erase_node(node)


def _failed(part: nn.Module, example: Example, calls: Calls, error: Exception) -> PruneError:
    """Return the error for a forward that fails while it is recorded."""
    try:
        with torch.no_grad(), training_mode(part, False):
            call(part, example)
    except Exception as own:
        values = tree_leaves(example_inputs(example))
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in values]
        return PruneError(
            f"the example (shape {shapes[0] if len(shapes) == 1 else shapes}) does not pass "
            f"through the model: it fails{_at(calls.failed)}: {first_line(own)}"
        )
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(MACHINERY)]
    where = calls.failed or type(part).__name__
    line = f" at `{users[-1].line}` ({users[-1].filename}:{users[-1].lineno})" if users else ""
    return PruneError(
        f"the model cannot be traced in {where}{line}: {error}. Control flow that depends on the "
        "values of tensors has to move out of forward. Or prune a submodule that can be traced "
        "with `inside`, or leave one out with `opaque`."
    )


def _at(path: str | None) -> str:
    return f" at {path}" if path else ""

"""From a model to its graphs: one for training, one for evaluation.

A forward that asks `self.training` is recorded in both modes.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from branchprune.errors import PruneError, first_line
from branchprune.graph.autocast import same_regions
from branchprune.graph.inputs import (
    Example,
    call,
    example_inputs,
    on_device,
    put,
    training_mode,
    untouched,
)
from branchprune.graph.module_numbers import Attribute, module_numbers
from branchprune.graph.nodes import CHECKPOINTED, Recorded
from branchprune.graph.random_generators import own_generators
from branchprune.graph.tracing.aliases import DERIVED
from branchprune.graph.tracing.calls import Calls
from branchprune.graph.tracing.dependence import follows_inputs, kept_for_later
from branchprune.graph.tracing.guards import MACHINERY
from branchprune.graph.tracing.mode_reads import follows_mode, mode_reads
from branchprune.graph.tracing.placeholders import bound_arguments, known_inputs
from branchprune.graph.tracing.recorder import Recorder
from branchprune.graph.tracing.side_effects import (
    Attributes,
    Draws,
    forget_shapes,
    state_is_changed,
)


@dataclass
class Traced:
    """What a trace has found.

    Attributes:
        graphs: The graphs by `training` flag; the same object twice if the modes do not differ.
        recorded: Shapes of the nodes' values for the example, and their costs.
        constants: Tensors that forward makes from plain numbers or that modules hold beside
            parameters and buffers, by the name that the graphs have for them.
        lost: Attributes with whose numbers forward computes what the graphs do not know.
        follows_mode: Whether forward may be another one in training.
    """

    graphs: dict[bool, fx.Graph] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)
    constants: dict[str, Tensor] = field(default_factory=dict)
    lost: set[Attribute] = field(default_factory=set)
    follows_mode: bool = False


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
    record = partial(_record, model, inside, example, opaque, counted, found)
    with training_mode(model, False):
        evaluation = train = _trace_once(record, found)
    if found.follows_mode:
        with training_mode(model, True):
            train = _trace_once(record, found)
    found.graphs = {False: evaluation, True: train}
    if (
        train is not evaluation
        and str(train) == str(evaluation)
        and same_regions(train, evaluation)
    ):
        for node, twin in zip(evaluation.nodes, train.nodes, strict=True):
            node.meta |= {k: v for k, v in twin.meta.items() if k == CHECKPOINTED}
        found.graphs[True] = evaluation
    return found


def _trace_once(record: Callable[[bool], Recorder], found: Traced) -> fx.Graph:
    """Record forward in the mode in which the model is: without numbers, else with them."""
    try:
        recorder = record(True)
    except PruneError:
        raise
    except Exception:  # of a forward that asks for numbers, or that cannot do without
        recorder = record(False)
    _drop_unread(recorder.graph)
    recorder.graph.lint()
    found.recorded.shapes |= recorder.recorded.shapes
    found.recorded.lengths |= recorder.recorded.lengths
    found.recorded.macs |= recorder.recorded.macs
    found.recorded.storages |= recorder.recorded.storages
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
    bound = bound_arguments(part, example if meta else on_device(example, model))
    with _state(model, meta), untouched(part), own_generators(part.parameters()):
        recorder = Recorder(model, inside, found.constants, meta)
        recorder.held()
        calls = Calls(recorder, opaque, counted)
        state, attributes, draws = _stored(part), Attributes(part), Draws(torchs=meta)
        calls.locates = draws if locates else None
        error = None
        stack = ExitStack()
        with stack, torch.enable_grad(), calls.recorded():
            lost = stack.enter_context(module_numbers(part, inside))
            asked = stack.enter_context(mode_reads(calls.sees))
            forget_shapes(part)
            args, kwargs = known_inputs(recorder, bound, meta)
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
        _refuse_kept(recorder, calls, args, kwargs)
        moved = draws.moved()
        if locates:
            draws.refuse(recorder.location())
        _refuse_assigned(recorder, state)
        attributes.refuse(calls.wholes)
    found.lost |= lost
    found.follows_mode |= bool(asked) or follows_mode(part, calls.wholes)
    if moved and not locates:
        return _record(model, inside, example, opaque, counted, found, meta, locates=True)
    return recorder


def _refuse_kept(
    recorder: Recorder, calls: Calls, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Call forward once more if it keeps what it has computed, and refuse that it uses it."""
    recorder.kept = kept_for_later(recorder.part, recorder.node_if_known)
    if recorder.kept:
        count = len(recorder.graph.nodes)
        with calls.recorded(), recorder:
            recorder.part.forward(*args, **kwargs)
        for node in [*recorder.graph.nodes][: count - 1 : -1]:
            recorder.graph.erase_node(node)


def _stored(part: nn.Module) -> dict[str, Tensor | None]:
    """Return the parameters and buffers of a module by their paths."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in part.named_modules()
        for name, value in (*module._parameters.items(), *module._buffers.items())
    }


def _refuse_assigned(recorder: Recorder, before: Mapping[str, Tensor | None]) -> None:
    """Raise a PruneError if forward has put another tensor in place of a parameter or buffer.

    One that does not follow from the inputs, such as an index for their size, is no loss.
    """
    for name, value in _stored(recorder.part).items():
        if value is not before.get(name):
            node = None if value is None else recorder.node_if_known(value)
            known = value is not None and id(value) in recorder.held()
            if not known and (node is None or follows_inputs(node)):
                raise state_is_changed(name)


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

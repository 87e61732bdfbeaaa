"""The inputs of forward: which the example gives, and the nodes by which they are known."""

from __future__ import annotations

import inspect
from operator import getitem, is_
from typing import Any

from torch import Tensor, fx, nn

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, example_inputs
from branchprune.graph.tracing.aliases import DERIVED
from branchprune.graph.tracing.guards import same_branch, same_length
from branchprune.graph.tracing.recorder import Recorder
from branchprune.graph.tracing.sizes import SizeFloat, SizeInt

STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
"""How arguments of forward without a name of their own are written."""


def bound_arguments(part: nn.Module, example: Example) -> inspect.BoundArguments:
    """Return the example's inputs by the names of forward's arguments."""
    args, kwargs = example_inputs(example)
    try:
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise PruneError(f"example does not fit {type(part).__name__}.forward: {error}") from error
    for name, parameter in bound.signature.parameters.items():
        stars = STARS.get(parameter.kind)
        if stars and bound.arguments.get(name):
            raise PruneError(
                f"the example gives {type(part).__name__}.forward arguments by {stars}{name}, "
                "into which a trace does not see: name them in forward, or prune a part that "
                "has names for them with `inside`"
            )
    return bound


def known_inputs(
    recorder: Recorder, bound: inspect.BoundArguments, meta: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of forward, each known by a node of its own."""
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind not in STARS:
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

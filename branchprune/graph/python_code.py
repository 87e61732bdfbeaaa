"""Functions from graphs, as Python code in which modules may have any name, even a keyword."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from functools import wraps
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, fx, nn

from branchprune.graph.autocast import mark, regions_of, set_regions, with_blocks
from branchprune.graph.nodes import IN_PLACE


def compiled(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """Return a graph as a function of the module that holds what it names, and of its inputs.

    Args:
        graph: The graph; what cannot be written in code is replaced in it.
        name: What its code is called in tracebacks.
    """
    _name_objects(graph)
    spell_out(graph)
    _keep_types(graph)
    marks = mark(graph)
    code = graph.python_code(root_module="self")
    scope = dict(code.globals)
    exec(compile(with_blocks(code.src, *marks), f"<{name}>", "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function


def _name_objects(graph: fx.Graph) -> None:
    """Replace objects that are called, whose class is all that code could name, by functions."""
    for node in graph.nodes:
        if not isinstance(node.target, str | type | FunctionType | BuiltinFunctionType):
            node.target = _function(node.target)


def _function(called: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(called, assigned=("__name__",), updated=())
    def function(*args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs)

    return function


def spell_out(graph: fx.Graph) -> None:
    """Replace paths that cannot be written in code, as `self.model.in`, by calls that look them up.

    Args:
        graph: A graph whose code is about to be written; it is changed.
    """
    for node in tuple(graph.nodes):
        if node.op not in ("call_module", "get_attr") or not _is_odd(str(node.target)):
            continue
        first, *others = str(node.target).split(".")
        with graph.inserting_before(node):
            found = graph.create_node("get_attr", first)
            for name in others:
                found = graph.call_function(part, (found, name))
            if node.op == "call_module":
                found = graph.call_function(call, (found, *node.args), dict(node.kwargs))
            set_regions(found, regions_of(node))
        node.replace_all_uses_with(found)
        graph.erase_node(node)


def _keep_types(graph: fx.Graph) -> None:
    """Give what forward computes in place the type of the tensor in which it stands there.

    They differ where types are mixed, as under autocast, which one cannot see in a graph.
    """
    for node in tuple(graph.nodes):
        if IN_PLACE in node.meta:
            with graph.inserting_after(node):
                kept = graph.call_function(as_type_of, (node, node.args[0]))
            set_regions(kept, regions_of(node))
            node.replace_all_uses_with(kept, delete_user_cb=lambda user, new=kept: user is not new)


def as_type_of(new: Tensor, old: Tensor) -> Tensor:
    """Return a tensor in the type of another."""
    return new.to(old.dtype)


def _is_odd(path: str) -> bool:
    """Return whether a path has a name that is a keyword, or that Python would read as another."""
    return any(keyword.iskeyword(name) or not name.isascii() for name in path.split("."))


def part(owner: nn.Module, name: str) -> Any:
    """Return a module, parameter or buffer of a module."""
    return getattr(owner, name)


def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module."""
    return module(*args, **kwargs)

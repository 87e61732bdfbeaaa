"""Replacing in-place operations in a traced graph by their out-of-place forms.

The wide path and its twin read the same tensors, so nothing may be changed under them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchprune.errors import PruneError


def make_out_of_place(graph: fx.Graph, model: nn.Module) -> None:
    """Replace in-place operations; what read the changed tensor afterwards reads the result.

    Raises:
        PruneError: Forward changes a parameter or buffer, which outlives the call.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    modules = dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        changed = _out_of_place(node, modules)
        if changed is None:
            continue
        if changed.op == "get_attr":
            raise state_is_changed(str(changed.target))
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)


def state_is_changed(name: str) -> PruneError:
    """Return the error for a forward that writes into a parameter or buffer."""
    owner = name.rpartition(".")[0] or "the module"
    return PruneError(
        f"forward changes {name}, which a trace loses: leave {owner} out with `opaque`, or teach "
        "its class with `bp.teach`"
    )


def refuse_assigned_state(part: nn.Module) -> None:
    """Raise a PruneError if a trace has left a proxy in place of a parameter or buffer."""
    for path, module in part.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(value, fx.Proxy):
                raise state_is_changed(f"{path}.{name}" if path else name)


def _out_of_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Rewrite an in-place node; return the tensor it used to change, or None."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node):
        return None
    if node.op == "call_module":
        return changed if getattr(modules[str(node.target)], "inplace", False) else None
    if node.op == "call_method" and isinstance(node.target, str):
        plain = node.target.removesuffix("_")
        if plain == node.target or not hasattr(Tensor, plain):
            return None
        node.target = plain
        return changed
    if node.op == "call_function" and callable(node.target):
        return changed if _function_out_of_place(node, node.target) else None
    return None


def _function_out_of_place(node: fx.Node, function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    plain = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
    if name.endswith("_") and plain is not None:
        node.target = plain
        return True
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    if not bound.arguments.get("inplace", False):
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True

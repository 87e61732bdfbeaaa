"""Modules whose weights cannot be replaced one for one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn


def find_obstacles(model: nn.Module, graphs: Iterable[fx.Graph]) -> dict[str, str]:
    """Return the modules whose weights cannot be replaced one for one, with the reason."""
    found: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(module):
            found[name] = f"{name} is parametrised"
        elif module._forward_pre_hooks or module._forward_hooks:
            found[name] = f"{name} has forward hooks"
        for parameter in module.parameters(recurse=False):
            first = owners.setdefault(id(parameter), name)
            if first != name:
                found[name] = found[first] = f"{first} and {name} share a weight"
    for graph in graphs:
        for node in graph.find_nodes(op="get_attr"):
            if any(user.target is not getattr for user in node.users):
                owner = str(node.target).rpartition(".")[0]
                found.setdefault(owner, f"forward itself reads {node.target}")
        called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        for name in called:
            if called.count(name) > 1 and model.get_submodule(name).state_dict():
                found.setdefault(name, f"{name} is called {called.count(name)} times")
    return found

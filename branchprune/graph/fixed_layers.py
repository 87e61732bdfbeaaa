"""Modules, parameters and buffers that cannot be replaced one for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import fx, nn

from branchprune.graph.reasons import Reason, place_of

ABOUT = frozenset(
    "dtype device layout ndim itemsize requires_grad is_leaf is_cuda is_cpu is_meta "
    "is_mps is_xpu is_sparse is_quantized is_nested".split()
)
"""Attributes of a tensor that tell nothing of its numbers, nor how many there are."""


def find_opaque(model: nn.Module, paths: Iterable[str]) -> frozenset[nn.Module]:
    """Return the modules at some paths, and those within that have no other place in the model.

    What is within is called by itself where a path is that of a list, or of a module whose parts
    are called from outside.
    """
    paths = list(paths)
    found = {model.get_submodule(path) for path in paths}
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    within = tuple(f"{path}." for path in paths)
    found.update(m for m, names in places.items() if all(n.startswith(within) for n in names))
    return frozenset(found)


def find_obstacles(model: nn.Module, graphs: Iterable[fx.Graph]) -> dict[str, str]:
    """Return the modules whose weights cannot be replaced one for one, with the reason."""
    graphs = [*graphs]
    found: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(module):
            remedy = "call `torch.nn.utils.parametrize.remove_parametrizations` before the plan"
            found[name] = Reason(f"{name} is parametrised", remedy=remedy)
        elif module._forward_pre_hooks or module._forward_hooks:
            remedy = "remove the hooks before the plan, and register them again after the collapse"
            found[name] = Reason(f"{name} has forward hooks", remedy=remedy)
        for parameter in module.parameters(recurse=False):
            first = owners.setdefault(id(parameter), name)
            if first != name:
                remedy = "let both be one module, called twice, or give each a weight of its own"
                why = Reason(f"{first} and {name} share a weight", remedy=remedy)
                found[name] = found[first] = why
    found |= _called_twofold(graphs)
    for graph in graphs:
        for node in _read(graph):
            owner = str(node.target).rpartition(".")[0]
            remedy = "call the layer in place of computing with its weight"
            reason = Reason(f"forward itself reads {node.target}", place_of(node), remedy)
            found.setdefault(owner, reason)
    for name, module in model.named_modules():
        within = [each for path, each in found.items() if path.startswith(f"{name}.")]
        if within and isinstance(module, nn.MultiheadAttention):
            found.setdefault(name, within[0])
    return found


def _called_twofold(graphs: Iterable[fx.Graph]) -> dict[str, Reason]:
    """Return modules that are called by themselves and within another one, and those others."""
    calls = {str(node.target): node for g in graphs for node in g.find_nodes(op="call_module")}
    found: dict[str, Reason] = {}
    for name, node in calls.items():
        above = name
        while above := above.rpartition(".")[0]:
            if above in calls:
                reason = Reason(f"forward calls {name} by itself and in {above}", place_of(node))
                found[name] = found[above] = reason
    return found


def find_readable(model: nn.Module, graphs: Iterable[fx.Graph]) -> Iterator[str]:
    """Yield the parameters and buffers that only forward itself reads, and that may shrink.

    Others stay as they are: those of a module that is called too, those with two names, and
    buffers that are not saved with the model and so would not come back when it is loaded.
    """
    graphs = list(graphs)
    called = {str(node.target) for graph in graphs for node in graph.find_nodes(op="call_module")}
    names = Counter(
        id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
    )
    for graph in graphs:
        for node in _read(graph):
            owner, _, name = str(node.target).rpartition(".")
            module = model.get_submodule(owner)
            kept = name in module._buffers and name not in module._non_persistent_buffers_set
            alone = names[id(module._parameters.get(name))] == 1
            if owner not in called and (kept or alone):
                yield str(node.target)


def _read(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the nodes that read the values of a parameter or buffer, not just its dtype."""
    for node in graph.find_nodes(op="get_attr"):
        if any(user.target is not getattr or user.args[1] not in ABOUT for user in node.users):
            yield node

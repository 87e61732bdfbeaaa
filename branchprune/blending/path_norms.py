"""Norms behind layers that read a weighted sum of both paths.

A norm with the statistics of the batch undoes the scale of what it reads: behind
`W (α u + (1 − α) B ũ)` it can bring back a wide path that α has made small, and the branch need not
learn. It cannot where it keeps statistics of its own, or where each path has a norm, mixed behind
it: `α · BN(W u) + (1 − α) · BN'(W B ũ)`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from branchprune.blending.path_sampling import Norms
from branchprune.errors import PruneError
from branchprune.graph.inputs import copied
from branchprune.graph.layers import set_path
from branchprune.graph.structure import LinearLayer, Structure

RESCALING = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
"""Norms that undo the scale of a layer, and whose first dimension is that of the examples."""


def layers_of(
    norms: Norms, model: nn.Module, structure: Structure, pruned: Iterable[int]
) -> frozenset[str]:
    """Return the paths of the layers that `norms` concerns; see `PathMixing`.

    Args:
        norms: See `attach`.
        model: The model.
        structure: Its structure.
        pruned: The groups with a branch, by index.

    Raises:
        PruneError: There is none.
    """
    if norms == "batch":
        return frozenset()
    groups = {*pruned}
    if norms == "kept":
        names, which = _with_statistics(model, structure), "BatchNorm that keeps statistics"
    else:
        names = {
            name
            for name, layer in structure.linears.items()
            if _reads_one_group(layer, groups) and _only_norms_follow(model, structure, name)
        }
        which = (
            "norm (BatchNorm, InstanceNorm or GroupNorm) alone behind a layer that reads the "
            "channels of one group"
        )
    if not names:
        raise PruneError(f"norms (={norms!r}): the model has no {which}: leave it at 'batch'")
    return frozenset(names)


def _nodes(structure: Structure) -> Iterable[fx.Node]:
    """Yield the nodes of both graphs that call a module."""
    for graph in structure.graphs.values():
        yield from (node for node in graph.nodes if node.op == "call_module")


def _with_statistics(model: nn.Module, structure: Structure) -> set[str]:
    """Return the BatchNorm layers with statistics of their own."""
    called = {str(node.target) for node in _nodes(structure)}
    found = ((name, model.get_submodule(name)) for name in called)
    return {n for n, m in found if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _reads_one_group(layer: LinearLayer, groups: set[int]) -> bool:
    """Return whether one α says how both paths mix in what a layer reads, not along channels."""
    return layer.dim != 0 and len({p.group for p in layer.inputs or ()} & groups) == 1


def _only_norms_follow(model: nn.Module, structure: Structure, name: str) -> bool:
    """Return whether all that reads a layer's output, in either mode, is a norm of its own."""
    users = [user for node in _nodes(structure) if node.target == name for user in node.users]
    if not users or not all(_is_norm(model, structure, user) for user in users):
        return False
    norms = {user.target for user in users}
    calls = (node for node in _nodes(structure) if node.target in norms)
    return all(node.all_input_nodes[0].target == name for node in calls)


def _is_norm(model: nn.Module, structure: Structure, node: fx.Node) -> bool:
    if node.op != "call_module" or node.target in structure.inplace:
        return False
    norm = isinstance(model.get_submodule(str(node.target)), RESCALING)
    return norm and len(node.all_input_nodes) == 1 and len(node.args) + len(node.kwargs) == 1


def norms_behind(structure: Structure, layer: str) -> list[str]:
    """Return the modules that read the output of a layer, in either mode.

    Args:
        structure: The structure of the model.
        layer: Path of the layer.
    """
    users = (user for node in _nodes(structure) if node.target == layer for user in node.users)
    return list(dict.fromkeys(str(user.target) for user in users))


def add_private_norms(blended: nn.Module, structure: Structure, layers: Collection[str]) -> None:
    """Add to `blended.private` a copy of each norm that is to see one path only, for the other.

    Args:
        blended: A blended model with all of its twins.
        structure: The structure of the model.
        layers: The layers that compute each path apart.
    """
    for name in (norm for layer in layers for norm in norms_behind(structure, layer)):
        for part in ("model", "twin"):
            holder = blended.get_submodule(part)
            if part == "model" or name in dict(holder.named_modules()):  # it has one if it shrinks
                norm = copied(holder.get_submodule(name))
                set_path(blended.get_submodule("private"), f"{part}.{name}", norm)


def normalized_apart(
    of_wide: nn.Module, of_branch: nn.Module, both: Tensor, alphas: Tensor, branch: int
) -> Tensor:
    """Return `α · of_wide(W u) + (1 − α) · of_branch(W B ũ)`.

    Args:
        of_wide: The norm of the wide path.
        of_branch: That of the branch.
        both: `W u` and behind it, along dimension 0, `W B ũ`.
        alphas: α of every group, shape (n,).
        branch: Index of the group that the layer reads.
    """
    size, alpha = len(both) // 2, alphas[branch]
    wide: Tensor = of_wide(both[:size])
    narrow: Tensor = of_branch(both[size:])
    return wide * alpha + narrow * (1 - alpha)


def with_own_statistics(norm: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return what a norm computes in evaluation mode; its weights learn all the same."""
    mode = norm.training
    norm.training = False
    try:
        output = norm(*args, **kwargs)
    finally:
        norm.training = mode
    return output

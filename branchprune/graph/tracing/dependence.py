"""What numbers and tensors follow from: sizes alone, or what stands in tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from branchprune.errors import PruneError
from branchprune.graph.held import held_tensors
from branchprune.graph.nodes import CONSTANT
from branchprune.graph.tracing.factories import DRAWS
from branchprune.graph.tracing.side_effects import draws_are_lost

_SIZES = (
    *(getattr, "size", "dim", "numel", "new_ones", "new_zeros", "new_full", "new_empty"),
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
)
_LIKE = ("type_as", "to", "expand_as", "view_as", "reshape_as")
_COUNTING = ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "nms")
_DRAWN = ("bernoulli", "bernoulli_", "normal_", "uniform_", "random_", "rand_like", "randn_like")


def refuse_values(nodes: Iterable[fx.Node], where: str) -> None:
    """Raise a PruneError if a number that forward asks for follows from more than sizes.

    Args:
        nodes: The tensors in which it stands.
        where: Path of the module whose forward asks.
    """
    seen: set[fx.Node] = set()
    rest = [*nodes]
    while rest:
        node = rest.pop()
        if node in seen or node.target in _SIZES:
            continue
        seen.add(node)
        rest += _read(node)
        if _is_drawn(node):
            raise draws_are_lost("torch", where)
        constant = node.op == "get_attr" and CONSTANT in str(node.target)
        if node.op == "placeholder" or (node.op in ("get_attr", "call_module") and not constant):
            raise TypeError("it asks for the value of a tensor")


def refuse_counts(node: fx.Node) -> None:
    """Raise an error if a number follows from how many values are found, as by `nonzero`."""
    seen: set[fx.Node] = set()
    rest = [node]
    while rest:
        each = rest.pop()
        if each not in seen:
            seen.add(each)
            rest += each.all_input_nodes
            if getattr(each.target, "__name__", each.target) in _COUNTING:
                raise TypeError("it asks for the values of a tensor")


def kept_for_later(part: nn.Module, find: Callable[[Tensor], fx.Node | None]) -> set[int]:
    """Return tensors that follow from inputs or draws and that modules hold after a call.

    Parameters and buffers are not meant, nor what is computed of them alone.

    Args:
        part: The module whose forward has run.
        find: Returns the node that computes a tensor; None where it is not recorded.
    """
    found = {id(tensor): find(tensor) for tensor in held_tensors(part)}
    return {key for key, node in found.items() if node is not None and follows_inputs(node)}


def follows_inputs(node: fx.Node) -> bool:
    """Return whether a tensor follows from numbers in the inputs, or from random draws."""
    seen: set[fx.Node] = set()
    rest = [node]
    while rest:
        each = rest.pop()
        if each not in seen and each.target not in _SIZES:
            seen.add(each)
            rest += _read(each)
    return any(each.op == "placeholder" or _is_drawn(each) for each in seen)


def _read(node: fx.Node) -> list[fx.Node]:
    """Return of what the numbers of a node follow; `type_as` reads those of its tensor alone."""
    read = node.all_input_nodes
    return read[:1] if node.target in _LIKE else read


def _is_drawn(node: fx.Node) -> bool:
    return node.target in DRAWS or str(node.target) in _DRAWN


def kept(name: str, where: str) -> PruneError:
    """Return the error for a forward that uses what it has computed in an earlier call."""
    return PruneError(
        f"forward keeps {name}, which it computes, for a later call, where {where} uses it; a "
        "trace loses that: compute it in __init__ or in each call, or leave the module out with "
        "`opaque`"
    )

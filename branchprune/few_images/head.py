"""The head of a model: the layers that make its outputs, and what they read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import call, tensors, training_mode
from branchprune.graph.reasons import OUTPUT
from branchprune.planning.plan import Plan

Read = dict[str, list[Tensor]]
"""What layers read in a forward pass, call by call."""


def head_layers(model: nn.Module, plan: Plan) -> dict[str, str]:
    """Return the layers that make the outputs from channels that shrink, with their linear end.

    Args:
        model: The model that was planned.
        plan: Its plan.

    Returns:
        For each layer that `forward` calls the path of its `expand`, in the order of the model.
    """
    linears, pruned = plan.structure.linears, plan.pruned
    return {
        name: linears[name].expand
        for name in output_layers(model, plan)
        if any(piece.group in pruned for piece in linears[name].inputs or ())
    }


def output_layers(model: nn.Module, plan: Plan) -> list[str]:
    """Return all layers that make the outputs and that `forward` calls, in the order of the model.

    Args:
        model: The model that was planned.
        plan: Its plan.
    """
    groups = plan.structure.groups
    found = [
        layer.name
        for layer in plan.structure.linears.values()
        if all(groups[piece.group].reason == OUTPUT for piece in layer.outputs)
    ]
    return called(model, plan, found)


def makes_all_outputs(plan: Plan, head: Collection[str]) -> bool:
    """Return whether all that narrow layers make reaches the outputs through the head alone.

    Args:
        plan: The plan.
        head: The layers of the head.
    """
    structure = plan.structure
    narrow = {*structure.linears, *structure.twins}
    open_nodes = [node for node in structure.graphs[False].nodes if node.op == "output"]
    seen = {*open_nodes}
    while open_nodes:
        node = open_nodes.pop()
        if node.op == "call_module" and node.target in head:
            continue
        if node.op == "call_module" and node.target in narrow:
            return False
        found = {*node.all_input_nodes} - seen
        seen |= found
        open_nodes += found
    return bool(head)


def called(model: nn.Module, plan: Plan, layers: Sequence[str]) -> list[str]:
    """Return the layers that `forward` calls in evaluation.

    Args:
        model: The model that was planned.
        plan: Its plan.
        layers: Paths of layers in it.
    """
    part = model.get_submodule(plan.structure.inside)
    with torch.no_grad(), training_mode(model, False), reading(model, layers) as read:
        call(part, plan.example)
    return [name for name in layers if read[name]]


@contextmanager
def reading(model: nn.Module, layers: Sequence[str], first: bool = False) -> Iterator[Read]:
    """Collect what layers read, for a `with` block; to be cleared between forward passes.

    Args:
        model: The model.
        layers: Paths of layers in it.
        first: Whether it is taken before the hooks of a layer change it.
    """
    read: Read = {name: [] for name in layers}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read[name].append(tensors((args, kwargs))[0])

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            note(name), prepend=first, with_kwargs=True
        )
        for name in layers
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()

"""The modules of a model as a tree: what each makes and costs, before and after a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from branchprune.graph.hooks import takes_hooks
from branchprune.graph.inputs import Example, call, tensors, training_mode, untouched
from branchprune.graph.structure import Structure, size_of
from branchprune.planning.columns import in_columns
from branchprune.planning.costs import amounts
from branchprune.planning.plan import Plan

Pair = tuple[int, int]
"""A number before the plan, and after."""


@dataclass(frozen=True)
class ModuleRow:
    """One module of a model.

    Attributes:
        name: Path of the module; "" for the model.
        kind: Its class.
        depth: How many modules are around it in the part that was planned.
        shape: Shape of the first tensor that it returns for the example, when it is called first;
            None where it is not called.
        width: Output channels, of a layer that has a width of its own; else None.
        params: Parameters of the module and all in it; shared ones count where they come first.
        macs: Multiply-adds of the module and all in it, for one example.
    """

    name: str
    kind: str
    depth: int
    shape: tuple[int, ...] | None
    width: Pair | None
    params: Pair
    macs: Pair


def module_tree(model: nn.Module, plan: Plan) -> tuple[ModuleRow, ...]:
    """Return the modules of the part of a model that a plan is of, each behind the one around it.

    Args:
        model: The model of the plan; it is run once, in evaluation mode.
        plan: The plan.
    """
    structure = plan.structure
    kept = [group.kept for group in plan.groups]
    part = model.get_submodule(structure.inside)
    modules = dict(part.named_modules(prefix=structure.inside))
    shapes = _output_shapes(part, modules, plan.example)
    sums: dict[str, list[float]] = {name: [0.0] * 4 for name in modules}
    for amount in amounts(model, structure):
        share = amount.share(kept)
        for name in _around(amount.module, structure.inside):
            for i, number in enumerate((amount.params, amount.macs)):
                sums[name][2 * i] += number
                sums[name][2 * i + 1] += number * share
    rows = []
    for name, module in modules.items():
        params, after, macs, macs_after = map(round, sums[name])
        depth = len([*_around(name, structure.inside)]) - 1
        width = _width(structure, name, kept)
        shape, kind = shapes.get(name), type(module).__name__
        rows.append(ModuleRow(name, kind, depth, shape, width, (params, after), (macs, macs_after)))
    return tuple(rows)


def tree_lines(rows: Sequence[ModuleRow], depth: int) -> list[str]:
    """Return a tree as lines for people.

    Args:
        rows: The modules.
        depth: How many levels below the topmost module are shown.
    """
    cells = [("module", "output shape", "width", "params", "MACs")]
    for row in rows:
        if row.depth <= depth:
            own = row.name.rpartition(".")[2]
            name = "  " * row.depth + (f"{own} ({row.kind})" if own else row.kind)
            shape = "×".join(map(str, row.shape)) if row.shape is not None else ""
            width = _pair(row.width) if row.width else ""
            cells.append((name, shape, width, _pair(row.params), _pair(row.macs)))
    return in_columns(cells)


def _pair(pair: Pair) -> str:
    before, after = pair
    if before == after == 0:
        return ""
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _around(name: str, inside: str) -> Iterator[str]:
    """Yield the path of a module and of all around it, up to the part that is planned."""
    while True:
        yield name
        if name == inside:
            return
        name = name.rpartition(".")[0]


def _width(structure: Structure, name: str, kept: Sequence[int]) -> Pair | None:
    if name in structure.linears:
        pieces, times = structure.linears[name].outputs, 1
    elif name in structure.twins:
        pieces, times = structure.twins[name].outputs, 1
    elif name in structure.channelwise:
        pieces, times = structure.channelwise[name].pieces, structure.channelwise[name].times
    else:
        return None
    return times * size_of(pieces), times * size_of(pieces, kept)


def _output_shapes(
    part: nn.Module, modules: dict[str, nn.Module], example: Example
) -> dict[str, tuple[int, ...]]:
    """Return the shape of the first tensor that each module returns at its first call."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, _: nn.Module, __: Any, output: Any) -> None:
        for tensor in tensors(output)[:1]:
            shapes.setdefault(name, tuple(tensor.shape))

    with ExitStack() as stack:
        for name, module in modules.items():
            if takes_hooks(module):
                stack.callback(module.register_forward_hook(partial(note, name)).remove)
        with torch.no_grad(), untouched(part), training_mode(part, False):
            call(part, example)
    return shapes

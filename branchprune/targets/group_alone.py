"""The dense model with one group narrow and all others wide, without building it.

What reads the channels of the group reads, of all of them, what a linear map makes of those that
are kept: the fitted branch of that group alone at α = 0. Where no map can be folded in, channels
are zero: in what a recurrent layer, attention or a weight of forward's own reads, and where no
layer reads them, as those of query and key, where they are made. A norm over several channels
(LayerNorm, GroupNorm) sees all of them, where a narrow model has only those that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.fit_expand import solve
from branchprune.criteria.input_statistics import Reader
from branchprune.graph.structure import Pieces, Structure
from branchprune.planning.paths import outputs_of


def reconstructing(reader: Reader, chosen: Tensor, blocks: int, ridge: float) -> Tensor:
    """Return the map that makes of some channels of a group the closest to all, shape (C, C).

    Args:
        reader: What a layer has read of all channels.
        chosen: Indices of those that are kept, shape (k,), as many of each block.
        blocks: Parts of the channels that are mapped apart, as by grouped convolutions.
        ridge: See `fit_expand`.
    """
    moment = reader.moment()
    matrix = torch.zeros_like(moment)
    for rows in torch.arange(len(moment)).chunk(blocks):
        kept = chosen[(chosen >= rows[0]) & (chosen <= rows[-1])]
        square, mixed = moment[kept[:, None], kept], moment[kept[:, None], rows]
        matrix[rows[:, None], kept] = solve(square[None], mixed[None], ridge)[0].to(matrix)
    return matrix


@contextmanager
def narrow_alone(
    model: nn.Module,
    structure: Structure,
    group: int,
    chosen: Tensor,
    readers: Sequence[Reader],
    ridge: float,
) -> Iterator[None]:
    """Let a model compute as with one group narrow, for a `with` block.

    Args:
        model: The model.
        structure: Its structure.
        group: The group.
        chosen: Indices of the channels that are kept, shape (k,).
        readers: What reads the group, with what they have read.
        ridge: Of the least squares; see `fit_expand`.
    """
    blocks = structure.groups[group].blocks
    with ExitStack() as stack:
        for reader in readers:
            layer = model.get_submodule(reader.layer.name)
            matrix = reconstructing(reader, chosen, blocks, ridge)
            hook = partial(_with_first, partial(_mapped, reader, matrix))
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        others = _zero_where_read(model, structure, group, chosen, stack)
        if not (readers or others) or _is_multiplied(structure, group):
            _zero_where_made(model, structure, group, chosen, stack)
        yield


def _is_multiplied(structure: Structure, group: int) -> bool:
    """Return whether the channels end in a product of tensors, as those of query and key."""
    called = {node.name: node.target for node in structure.graphs[False].nodes}
    return any(
        piece.group == group
        for name, each in structure.contractions[False].items()
        if called[name] not in structure.twins
        for piece in each.pieces
    )


def _zero_where_read(
    model: nn.Module, structure: Structure, group: int, chosen: Tensor, stack: ExitStack
) -> bool:
    """Let layers into which no map can be folded read 0 in the place of channels; say if some do.

    These are layers whose twin is one of their own, and weights that forward itself reads.
    """
    found = False
    for name, twin in structure.twins.items():
        entries = _lost(twin.inputs or (), group, chosen)
        if len(entries):
            hook = partial(_with_first, partial(_without, entries, _dim_of(structure, name, True)))
            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            found = True
    for parameter in structure.parameters.values():
        for axis, pieces in parameter.axes.items():
            entries = _lost(pieces, group, chosen)
            if len(entries):
                tensor: Tensor = attrgetter(parameter.name)(model)
                stack.callback(partial(_put_back, tensor, tensor.detach().clone()))
                tensor.data.index_fill_(axis, entries.to(tensor.device), 0)
                found = True
    return found


def _put_back(tensor: Tensor, values: Tensor) -> None:
    tensor.data.copy_(values)


def _dim_of(structure: Structure, name: str, is_read: bool) -> int:
    """Return the dimension of the channels that a layer reads, or makes; -1 if it is not known."""
    known = structure.tensors[False]
    for node in structure.graphs[False].nodes:
        if node.op == "call_module" and node.target == name:
            found = next(iter(node.all_input_nodes), None) if is_read else node
            if found is not None and found.name in known:
                return known[found.name].dim
    return -1


def _zero_where_made(
    model: nn.Module, structure: Structure, group: int, chosen: Tensor, stack: ExitStack
) -> None:
    """Let layers make 0 in the place of channels that are not kept."""
    for name, outputs in outputs_of(structure).items():
        entries = _lost(outputs, group, chosen)
        if len(entries) and name not in structure.parameters:
            hook = partial(_output_without, entries, _dim_of(structure, name, False))
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)


def _with_first(change: Callable[[Tensor], Tensor], _: nn.Module, args: Any, kwargs: Any) -> Any:
    """Return the arguments of a layer with its first tensor changed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    first = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, kwargs | {first: change(kwargs[first])}


def _mapped(reader: Reader, matrix: Tensor, x: Tensor) -> Tensor:
    return reader.mapped(x, matrix.to(x))


def _without(entries: Tensor, dim: int, x: Tensor) -> Tensor:
    return x.index_fill(dim, entries.to(x.device), 0)


def _output_without(entries: Tensor, dim: int, _: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        return (_without(entries, dim, output[0]), *output[1:])
    return _without(entries, dim, output) if isinstance(output, Tensor) else output


def _lost(pieces: Pieces, group: int, chosen: Tensor) -> Tensor:
    """Return the entries of a dimension that belong to channels that are not kept."""
    found, start = [], 0
    for piece in pieces:
        if piece.group == group:
            lost = torch.ones(piece.width, dtype=torch.bool)
            lost[chosen] = False
            found.append(lost.repeat_interleave(piece.repeat).nonzero()[:, 0] + start)
        start += piece.size
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

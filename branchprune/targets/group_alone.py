"""The dense model with one group narrow and all others wide, without building it.

What reads the channels of the group reads, of all of them, what a linear map makes of those that
are kept: the fitted branch of that group alone at α = 0. Channels that no linear layer reads, as
those of query and key, are zero where they are made. A norm over several channels (LayerNorm,
GroupNorm) sees all of them, where a narrow model has only those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.blending.fit_expand import solve
from branchprune.criteria.input_statistics import Reader
from branchprune.graph.inputs import tensors
from branchprune.graph.structure import Pieces, Structure
from branchprune.planning.paths import outputs_of


def reconstructing(reader: Reader, chosen: Tensor, ridge: float) -> Tensor:
    """Return the map that makes of some channels of a group the closest to all, shape (C, C).

    Args:
        reader: What a layer has read of all channels.
        chosen: Indices of those that are kept, shape (k,).
        ridge: See `fit_expand`.
    """
    moment = reader.moment()
    square, mixed = moment[chosen[:, None], chosen], moment[chosen]
    matrix = torch.zeros_like(moment)
    matrix[:, chosen] = solve(square[None], mixed[None], ridge)[0]
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
    with ExitStack() as hooks:
        for reader in readers:
            layer = model.get_submodule(reader.layer.name)
            hook = partial(_mapped, reader, reconstructing(reader, chosen, ridge))
            hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        if not readers:
            for name, outputs in outputs_of(structure).items():
                entries = _lost(outputs, group, chosen)
                if len(entries) and name not in structure.parameters:
                    dim = structure.linears[name].dim if name in structure.linears else -1
                    hook = partial(_without, entries, dim)
                    hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def _mapped(reader: Reader, matrix: Tensor, _: nn.Module, args: Any, kwargs: Any) -> Any:
    x = tensors((args, kwargs))[0]
    found = reader.mapped(x, matrix.to(x))
    if args:
        return (found, *args[1:]), kwargs
    return args, kwargs | {next(iter(kwargs)): found}


def _without(entries: Tensor, dim: int, _: nn.Module, args: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        return output
    return output.index_fill(dim, entries.to(output.device), 0)


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

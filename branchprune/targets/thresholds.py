"""Widths by one threshold: on the change of the output, or on the norms of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.scores import l1
from branchprune.graph.structure import Pieces, Structure
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit, hold
from branchprune.targets.selection import Ways

SHARES = 200
"""Shares of the channels of a kind that are tried."""


def threshold(widths: Sequence[Sequence[int]], values: Sequence[Sequence[float]]) -> Ways:
    """Return the way that gives each group the least width whose value is within a threshold.

    With the change of the output as values that is the search of FastNAS (Model-Optimizer).

    Args:
        widths: Those that each group may take, rising.
        values: A number for each of them, falling.
    """
    return partial(_least, widths, values)


def _least(
    widths: Sequence[Sequence[int]], values: Sequence[Sequence[float]], limits: Sequence[Limit]
) -> Tensor:
    """Return the widths at the least threshold that is within limits."""
    levels = sorted({value for each in values for value in each})
    tries = [partial(_at, widths, values, level) for level in levels]
    return _first(tries, partial(hold, limits))


def _first(tries: Sequence[Callable[[], Tensor]], holds: Callable[[Tensor], bool]) -> Tensor:
    """Return the first widths, of ever narrower ones, for which something holds; else the last."""
    low, high = 0, len(tries) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(tries[middle]()):
            high = middle
        else:
            low = middle + 1
    return tries[low]()


def _at(widths: Sequence[Sequence[int]], values: Sequence[Sequence[float]], level: float) -> Tensor:
    return torch.tensor(
        [
            next((w for w, value in zip(row, each, strict=True) if value <= level), row[-1])
            for row, each in zip(widths, values, strict=True)
        ],
        dtype=torch.double,
    )


def global_l1(traced: Traced, widths: Sequence[Sequence[int]]) -> Ways:
    """Return the way that keeps the channels of largest L1 norm, as a multiple of its group's mean.

    Args:
        traced: The model.
        widths: Those that each group may take, rising.
    """
    return threshold(widths, _norms_lost(traced, widths))


def isomorphic_l1(traced: Traced, widths: Sequence[Sequence[int]]) -> Ways:
    """Return the way that keeps one share of each kind of groups, and there those of largest norm.

    Of one kind are groups that layers of the same classes and kernels make and read (Isomorphic
    Pruning, ECCV 2024).

    Args:
        traced: The model.
        widths: Those that each group may take, rising.
    """
    kinds = defaultdict[tuple[str, ...], list[int]](list)
    for i, kind in enumerate(_kinds(traced.model, traced.structure)):
        if len(widths[i]) > 1:
            kinds[kind].append(i)
    return partial(_each_kind, widths, _norms_lost(traced, widths), [*kinds.values()])


def _each_kind(
    widths: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
    kinds: Sequence[Sequence[int]],
    limits: Sequence[Limit],
) -> Tensor:
    def at(share: float) -> Tensor:
        kept = torch.tensor([row[-1] for row in widths], dtype=torch.double)
        for kind in kinds:
            rows, lost = [widths[i] for i in kind], [values[i] for i in kind]
            most = share * sum(row[-1] for row in rows)
            levels = sorted({value for each in lost for value in each})
            tries = [partial(_at, rows, lost, level) for level in levels]
            kept[torch.tensor(kind)] = _first(tries, partial(_are_few, most))
        return kept

    shares = [place / SHARES for place in range(SHARES, -1, -1)]
    return _first([partial(at, share) for share in shares], partial(hold, limits))


def _are_few(most: float, kept: Tensor) -> bool:
    return float(kept.sum()) <= most


def _norms_lost(traced: Traced, widths: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the largest norm of a channel that each width loses; 0 where it loses none."""
    found = []
    for i, row in enumerate(widths):
        if len(row) == 1:
            found.append([0.0])
            continue
        norms = l1(group_weights(traced.model, traced.structure, i, traced.model)).double()
        mean = norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)  # a group may be dead
        falling = [*(norms / mean).sort(descending=True).values.tolist(), 0.0]
        found.append([falling[width] for width in row])
    return found


def _kinds(model: nn.Module, structure: Structure) -> list[tuple[str, ...]]:
    """Return for each group what kinds of layers make and read it."""
    found: list[list[str]] = [[] for _ in structure.groups]

    def note(name: str, pieces: Pieces | None, side: str) -> None:
        module = model.get_submodule(name)
        kernel = getattr(module, "kernel_size", "")
        for group in {piece.group for piece in pieces or ()}:
            found[group].append(f"{side} {type(module).__name__} {kernel}")

    for name, linear in structure.linears.items():
        note(name, linear.outputs, "made by")
        note(name, linear.inputs, "read by")
    for name, twin in structure.twins.items():
        note(name, twin.outputs, "made by")
        note(name, twin.inputs, "read by")
    for name, layer in structure.channelwise.items():
        note(name, layer.pieces, "with")
    return [tuple(sorted(each)) for each in found]

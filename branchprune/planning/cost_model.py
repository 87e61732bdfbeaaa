"""What a model costs as a function of the widths of its channel groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from branchprune.graph.structure import Pieces, size_of
from branchprune.planning.costs import Amount


class CostModel(Protocol):
    """A cost of a model, whatever widths its groups have."""

    def total(self, kept: Tensor) -> float:
        """Return the cost at some widths, one of each group, float64, shape (G,)."""

    def changes(self, kept: Tensor, widths: Tensor, groups: slice) -> Tensor:
        """Return by how much it changes where one group alone takes another width.

        Args:
            kept: The widths of all groups, float64, shape (G,).
            widths: What each of some groups may take, float64, shape (N, K).
            groups: Which groups these are.

        Returns:
            The changes, float64, shape (N, K).
        """


@dataclass(frozen=True, eq=False)
class Polynomial:
    """`c + a·k + ½ kᵀBk + d·k²` over the widths k: a layer has those of both its sides.

    Attributes:
        constant: c, what no width changes.
        linear: a, float64, shape (G,).
        products: B, symmetric, its diagonal 0, float64, shape (G, G).
        squares: d, of layers that make and read one group, float64, shape (G,).
    """

    constant: float
    linear: Tensor
    products: Tensor
    squares: Tensor

    def total(self, kept: Tensor) -> float:
        """Return the cost at some widths; see `CostModel`."""
        lines = self.linear + self.products @ kept / 2 + self.squares * kept
        return self.constant + float(lines @ kept)

    def changes(self, kept: Tensor, widths: Tensor, groups: slice) -> Tensor:
        """Return how the cost changes with the width of one group; see `CostModel`."""
        slopes = self.linear[groups] + self.products[groups] @ kept
        now = kept[groups, None]
        bends = self.squares[groups, None] * (widths + now)
        return (slopes[:, None] + bends) * (widths - now)


def params_and_macs(amounts: Iterable[Amount], groups: int) -> tuple[Polynomial, Polynomial]:
    """Return the parameters and the multiply-adds for one example, exact at all widths.

    Args:
        amounts: What the model costs; see `branchprune.planning.costs.amounts`.
        groups: How many groups it has.
    """
    every = [*amounts]
    return (
        polynomial([(each.params, each.axes) for each in every], groups),
        polynomial([(each.macs, each.axes) for each in every], groups),
    )


def polynomial(parts: Iterable[tuple[float, tuple[Pieces | None, ...]]], groups: int) -> Polynomial:
    """Return the sum of amounts, each of which shrinks with the widths along some axes.

    Args:
        parts: What each amounts to, with what the channels along its axes are made of.
        groups: How many groups there are.
    """
    terms = defaultdict[tuple[int, ...], float](float)
    for size, axes in parts:
        known = [axis for axis in axes if axis]
        for pieces in product(*known):
            share = size * prod(piece.repeat for piece in pieces)
            terms[tuple(piece.group for piece in pieces)] += share / prod(map(size_of, known))
    linear, squares = (torch.zeros(groups, dtype=torch.double) for _ in range(2))
    products = torch.zeros(groups, groups, dtype=torch.double)
    constant = terms.pop((), 0.0)
    for key, value in terms.items():
        match key:
            case (g,):
                linear[g] += value
            case (g, h) if g == h:
                squares[g] += value
            case (g, h):
                products[g, h] += value
                products[h, g] += value
            case _:
                raise AssertionError("a parameter has channels along more than two axes")
    return Polynomial(constant, linear, products, squares)

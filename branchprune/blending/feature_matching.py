"""Feature matching: the branch of every tensor is pulled towards what the wide path computes.

The gradient of the term is injected in the backward pass, as that of the auxiliary losses of
mixtures of experts, so any training loop has it without a change. Source of the idea: FitNets
(Romero et al., 2015); here the branch's own linear end is the regressor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from branchprune.blending.projections import Expand


def mismatch(expand: Expand, narrow: Tensor, wide: Tensor, live: Sequence[bool]) -> Tensor:
    """Return `‖B ũ − u‖² / ‖u‖²`, a number; 0 where u is 0.

    Args:
        expand: The linear end B.
        narrow: The twin's tensor ũ.
        wide: The tensor u of the wide path, which is held fixed.
        live: Which pieces of the channel dimension count.
    """
    sizes = [piece.wide * piece.repeat for piece in expand.pieces]
    pairs = zip(
        expand(narrow).split(sizes, expand.dim),
        wide.detach().split(sizes, expand.dim),
        live,
        strict=True,
    )
    missed, size = [], []
    for found, wanted, counts in pairs:
        if counts:
            high = torch.promote_types(wanted.dtype, torch.float32)
            missed.append((found.to(high) - wanted.to(high)).square().sum())
            size.append(wanted.to(high).square().sum())
    total = torch.stack(size).sum()
    return torch.stack(missed).sum() / total.masked_fill(total == 0, float("inf"))


def pulled(x: Tensor, term: Tensor, weight: float) -> Tensor:
    """Return a tensor unchanged, whose backward pass adds the gradient of `weight · term`."""
    pulled: Tensor = _Pull.apply(x, term * weight)
    return pulled


def record(value: Tensor, terms: Sequence[Tensor], weight: float) -> None:
    """Write `weight · Σ terms` into a tensor."""
    value.copy_(torch.stack([term.detach() for term in terms]).sum() * weight)


class _Pull(torch.autograd.Function):
    """The identity of its first argument; the gradient of its second is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(term))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (one,) = ctx.saved_tensors
        return gradients[0], one

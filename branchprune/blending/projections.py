"""The linear ends of a branch: `reduce` behind each producer, `expand` before each consumer.

Neither has a bias: a bias in `expand` would be wrong wherever the consumer pads with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchprune.graph.folding import Fold, fold_bias, fold_weight

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class EndPiece:
    """Part of a channel dimension at a linear end: the channels of one group, in one run.

    Attributes:
        wide: Channels on the wide side.
        kept: Channels on the narrow side.
        repeat: Entries a channel.
        branch: Index of the group's α, or None where the width stays and nothing is mapped.
        blocks: Blocks of the layer that it spans, and so of its matrix, which is block-diagonal.
    """

    wide: int
    kept: int
    repeat: int
    branch: int | None
    blocks: int = 1


def map_channels(x: Tensor, weight: Tensor, dim: int, repeat: int, blocks: int) -> Tensor:
    """Apply a linear map along the channels of a tensor, as a 1x1 convolution does.

    Args:
        x: Tensor whose dimension `dim` has `in * repeat` entries.
        weight: Matrix (out, in / blocks), block-diagonal if `blocks` > 1.
        dim: The channel dimension.
        repeat: Consecutive entries that belong to one channel.
        blocks: Number of blocks.

    Returns:
        Tensor with `out * repeat` entries along `dim`.
    """
    dim %= x.dim()
    if dim == x.dim() - 1 and repeat == blocks == 1:
        return F.linear(x, weight)
    if dim == 1 and repeat == 1 and x.dim() in _CONVOLUTIONS:
        kernel = weight.reshape(*weight.shape, *[1] * (x.dim() - 2))
        return _CONVOLUTIONS[x.dim()](x, kernel, groups=blocks)
    lead, tail = x.shape[:dim], x.shape[dim + 1 :]
    flat = x.reshape(prod(lead), x.shape[dim] // repeat, repeat * prod(tail))
    mapped = F.conv1d(flat, weight.unsqueeze(-1), groups=blocks)
    return mapped.reshape(*lead, len(weight) * repeat, *tail)


class LinearEnd(nn.Module):
    """A linear map between the wide and the narrow form of a channel dimension.

    Args:
        pieces: What the dimension is made of, in order.
        dim: The channel dimension.
        weights: For each piece with a branch, its matrix.
    """

    def __init__(self, pieces: Sequence[EndPiece], dim: int, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.pieces, self.dim = tuple(pieces), dim
        self.weights = nn.ParameterList([nn.Parameter(weight) for weight in weights])

    def each(self) -> Iterator[tuple[EndPiece, Tensor | None]]:
        """Yield each piece with its matrix, None where the width stays."""
        weights = iter(self.weights)
        for piece in self.pieces:
            yield piece, None if piece.branch is None else next(weights)

    def cut(
        self, x: Tensor, side: Literal["wide", "kept"]
    ) -> list[tuple[Tensor, tuple[EndPiece, Tensor | None]]]:
        """Cut a tensor into its pieces, each with its description and matrix."""
        sizes = [getattr(piece, side) * piece.repeat for piece in self.pieces]
        parts = (x,) if len(sizes) == 1 else x.split(sizes, self.dim)
        return list(zip(parts, self.each(), strict=True))

    def _map(self, x: Tensor, piece: EndPiece, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return map_channels(x, weight, self.dim, piece.repeat, piece.blocks)

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), self.dim)

    def folds(self) -> list[Fold]:
        """Return, for each piece, its wide channels, entries a channel and matrix; see `Fold`."""
        return [(piece.wide, piece.repeat, matrix) for piece, matrix in self.each()]

    def extra_repr(self) -> str:
        """Say the widths."""
        widths = ", ".join(f"{piece.wide}:{piece.kept}" for piece in self.pieces)
        blocks = max(piece.blocks for piece in self.pieces)
        return f"{widths}, dim={self.dim}" + f", blocks={blocks}" * (blocks > 1)


class Reduce(LinearEnd):
    """The map from C to k channels that stands directly behind a producer."""

    def forward(self, wide: Tensor) -> Tensor:
        """Map a producer's output to the narrow width."""
        return self._join([self._map(z, p, w) for z, (p, w) in self.cut(wide, "wide")])


class Expand(LinearEnd):
    """The map from k to C channels before a consumer, and the blend with the wide path."""

    def forward(
        self,
        narrow: Tensor,
        wide: Tensor | None = None,
        alphas: Tensor | None = None,
        apart: bool = False,
    ) -> Tensor:
        """Return `α · wide + (1 − α) · expand(narrow)`, or the expansion alone without `wide`.

        Args:
            narrow: The twin's tensor.
            wide: The tensor of the wide path.
            alphas: α of every group, shape (number of branches,); with further dimensions before
                that one, α differs along those of the tensor.
            apart: Return `wide` and behind it the expansion, along dimension 0, in place of the
                sum.
        """
        if wide is not None and apart:
            return torch.cat([wide, self.forward(narrow)])
        narrows = self.cut(narrow, "kept")
        if wide is None or alphas is None:
            return self._join([self._map(x, piece, weight) for x, (piece, weight) in narrows])
        parts = []
        for (x, (piece, weight)), (u, _) in zip(narrows, self.cut(wide, "wide"), strict=True):
            alpha = self._alpha_of(piece, alphas)
            if weight is None or alpha.dim():
                branch = self._map(x, piece, weight) * (1 - alpha)
            else:  # The weight is scaled instead of the result: it is the smaller tensor.
                branch = self._map(x, piece, weight * (1 - alpha))
            parts.append(branch + u * alpha)
        return self._join(parts)

    def _alpha_of(self, piece: EndPiece, alphas: Tensor) -> Tensor:
        """Return α of a piece; one that stays is blended too, since a norm may have a twin."""
        if piece.branch is not None:
            return alphas[..., piece.branch]
        live = [alphas[..., p.branch] for p in self.pieces if p.branch is not None]
        return torch.stack(live).mean(0)


def apply_folded(
    layer: nn.Module, reduce: Reduce | None, expand: Expand | None, x: Tensor
) -> Tensor:
    """Apply `reduce(layer(expand(x)))`, by the folded weight where that takes fewer multiply-adds.

    Args:
        layer: A convolution or fully connected layer.
        reduce: Its linear end, or None if its outputs are needed wide.
        expand: The linear end before it, or None if `x` is wide.
        x: The layer's input.
    """
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    if _positions(layer, x) * _saved(weight, reduce, expand) < _cost_of_fold(
        weight, reduce, expand
    ):
        x = x if expand is None else expand(x)
        z: Tensor = layer(x)
        return z if reduce is None else reduce(z)
    with torch.autocast(x.device.type, enabled=False):
        outputs = None if reduce is None else reduce.folds()
        inputs = None if expand is None else expand.folds()
        folded = {"weight": fold_weight(layer, weight, outputs, inputs)}
        if isinstance(bias, Tensor):
            folded["bias"] = bias if outputs is None else fold_bias(layer, bias, outputs)
    result: Tensor = torch.func.functional_call(layer, folded, (x,))
    return result


def _shrink(end: LinearEnd | None) -> float:
    if end is None:
        return 1.0
    return sum(p.kept * p.repeat for p in end.pieces) / sum(p.wide * p.repeat for p in end.pieces)


def _saved(weight: Tensor, reduce: Reduce | None, expand: Expand | None) -> float:
    """Return the multiply-adds a position that the folded layer saves (the ends' own aside)."""
    return weight.numel() * (1 - _shrink(reduce) * _shrink(expand))


def _cost_of_fold(weight: Tensor, reduce: Reduce | None, expand: Expand | None) -> float:
    """Return the multiply-adds of folding the ends into the weight."""
    cost = 0.0
    if reduce is not None:
        cost += weight.numel() * max(p.kept / p.blocks for p in reduce.pieces)
    if expand is not None:
        cost += weight.numel() * _shrink(reduce) * max(p.kept / p.blocks for p in expand.pieces)
    return cost


def _positions(layer: nn.Module, x: Tensor) -> int:
    """Return how often the layer's weight is applied to an input."""
    if isinstance(layer, nn.Linear):
        return x.numel() // x.shape[-1]
    stride: tuple[int, ...] = getattr(layer, "stride", ())
    steps = 1 if getattr(layer, "transposed", False) else prod(stride)
    return x.shape[0] * prod(x.shape[2:]) // steps

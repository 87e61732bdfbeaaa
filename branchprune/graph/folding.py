"""The algebra of the collapse: folding a linear end into the weight next to it.

Pure functions of tensors. A weight of a layer with G groups is seen as `(G, O/G, I/G, ...)`; a
linear end is a block-diagonal matrix with G blocks, kept as a weight of shape `(out, in/G)` like
that of a grouped 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branchprune.graph.layers import TRANSPOSED

Fold = tuple[int, int, Tensor | None]
"""A run of channels in a dimension: how many, how often repeated, and the matrix to fold in."""


def fold_weight(
    layer: nn.Module,
    weight: Tensor,
    reduce: Sequence[Fold] | None = None,
    expand: Sequence[Fold] | None = None,
) -> Tensor:
    """Fold linear ends into the weight of a convolution or fully connected layer.

    `W'[k, i] = sum_o A[k, o] W[o, i]` on the output side and `W'[o, j] = sum_i W[o, i] B[i, j]`
    on the input side; the spatial dimensions ride along.

    Args:
        layer: The layer, for its kind and number of groups.
        weight: Its weight, in the layer's own format.
        reduce: What stands behind its outputs: matrices `A` of shape (k, C/G).
        expand: What stands before its inputs: matrices `B` of shape (C, k/G).

    Returns:
        The weight of the narrow layer, in the layer's own format.
    """
    groups = int(getattr(layer, "groups", 1))
    transposed = isinstance(layer, TRANSPOSED)
    blocks: Tensor = weight.unflatten(0, (groups, -1))
    blocks = blocks.transpose(1, 2) if transposed else blocks
    if reduce is not None:
        blocks = fold_axis(blocks, 1, [(c, r, _blocks(m, groups)) for c, r, m in reduce])
    if expand is not None:
        matrices = [(c, r, _transposed(_blocks(m, groups))) for c, r, m in expand]
        blocks = fold_axis(blocks, 2, matrices)
    blocks = blocks.transpose(1, 2) if transposed else blocks
    # Plain strides: those of a 1x1 kernel can read as channels_last, and convolutions obey them.
    return blocks.reshape(-1).view(-1, *blocks.shape[2:])


def fold_bias(layer: nn.Module, bias: Tensor, reduce: Sequence[Fold]) -> Tensor:
    """Fold the output side into a bias: `b' = A b`."""
    groups = int(getattr(layer, "groups", 1))
    runs = [(c, r, _blocks(m, groups)) for c, r, m in reduce]
    return fold_axis(bias.unflatten(0, (groups, -1)), 1, runs).flatten(0, 1)


def fold_axis(blocks: Tensor, axis: int, runs: Sequence[Fold]) -> Tensor:
    """Multiply each run of channels along an axis by its matrix; runs without one stay.

    Args:
        blocks: Tensor of shape (G, ...), where G is the number of blocks.
        axis: The axis that holds the channels of one block.
        runs: For each run, its channels over all blocks, its repeat and a matrix
            (G, new/G, old/G) or None.
    """
    parts, start = [], 0
    for channels, repeat, matrix in runs:
        length = channels * repeat // len(blocks)
        part = blocks.narrow(axis, start, length)
        start += length
        if matrix is not None:
            part = part.unflatten(axis, (-1, repeat)).movedim(axis, -1)
            part = torch.einsum("gno,g...o->g...n", matrix, part)
            part = part.movedim(-1, axis).flatten(axis, axis + 1)
        parts.append(part)
    assert start == blocks.shape[axis], f"runs cover {start} of {blocks.shape[axis]} channels"
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _blocks(matrix: Tensor | None, groups: int) -> Tensor | None:
    return None if matrix is None else matrix.unflatten(0, (groups, -1))


def _transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.transpose(1, 2)


def flush_subnormals(tensor: Tensor) -> Tensor:
    """Return a copy with 0 for numbers that slow a CPU down and count for nothing.

    Those are below the normal range of their dtype and either below that of single precision, or
    so small beside the tensor's largest that all of them together would not change its last
    digit. The normal range of half precision ends at 6e-5, and most of what is below does count.
    """
    copy = tensor.clone()
    if tensor.is_floating_point() and tensor.numel():
        limits = torch.finfo(tensor.dtype)
        size = tensor.abs()
        beside = float(size.nan_to_num(posinf=0.0).max()) * limits.eps**2
        counts = max(beside, torch.finfo(torch.float32).tiny)
        copy.masked_fill_(size < min(limits.tiny, counts), 0)
    return copy

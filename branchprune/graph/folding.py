"""The algebra of the collapse: folding a linear end into the weight next to it.

Pure functions of tensors. A weight of a layer with G groups is seen as `(G, O/G, I/G, ...)`. A
run of its channels lies within one of these blocks or spans m of them; its linear end is then a
block-diagonal matrix with m blocks, kept as a weight of shape `(out, in/m)` like that of a grouped
1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branchprune.graph.layers import TRANSPOSED

Fold = tuple[int, int, Tensor | None]
"""A run of channels in a dimension: how many, how often repeated, and the matrix to fold in."""


def spanned(size: int, length: int) -> int:
    """Return how many blocks a run of entries spans: 1 if it lies within one.

    Args:
        size: Entries of the run.
        length: Entries of a block.
    """
    return max(1, size // length)


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
        reduce: What stands behind its outputs: matrices `A` of shape (k, C/m).
        expand: What stands before its inputs: matrices `B` of shape (C, k/m).

    Returns:
        The weight of the narrow layer, in the layer's own format.
    """
    groups = int(getattr(layer, "groups", 1))
    transposed = isinstance(layer, TRANSPOSED)
    blocks: Tensor = weight.unflatten(0, (groups, -1))
    blocks = blocks.transpose(1, 2) if transposed else blocks
    if reduce is not None:
        blocks = fold_axis(blocks, 1, _stacked(reduce, blocks.shape[1]))
    if expand is not None:
        stacked = _stacked(expand, blocks.shape[2])
        matrices = [(c, r, None if m is None else m.transpose(1, 2)) for c, r, m in stacked]
        blocks = fold_axis(blocks, 2, matrices)
    blocks = blocks.transpose(1, 2) if transposed else blocks
    # Plain strides: those of a 1x1 kernel can read as channels_last, and convolutions obey them.
    return blocks.reshape(-1).view(-1, *blocks.shape[2:])


def fold_bias(layer: nn.Module, bias: Tensor, reduce: Sequence[Fold]) -> Tensor:
    """Fold the output side into a bias: `b' = A b`."""
    groups = int(getattr(layer, "groups", 1))
    blocks: Tensor = bias.unflatten(0, (groups, -1))
    return fold_axis(blocks, 1, _stacked(reduce, blocks.shape[1])).flatten(0, 1)


def fold_axis(blocks: Tensor, axis: int, runs: Sequence[Fold]) -> Tensor:
    """Multiply each run of channels along an axis by its matrix; runs without one stay.

    Args:
        blocks: Tensor of shape (G, ...), where G is the number of blocks.
        axis: The axis that holds the channels of one block.
        runs: For each run, its channels in all blocks that it spans, its repeat, and a matrix of
            shape (m, new/m, old/m) or None. A run begins where the one before ends, in that block
            or in the next.
    """
    length = blocks.shape[axis]
    rows: list[Tensor] = []
    row: list[Tensor] = []
    done = filled = 0
    for channels, repeat, matrix in runs:
        count = spanned(channels * repeat, length)
        size = channels * repeat // count
        part = blocks[done : done + count].narrow(axis, filled, size)
        row.append(part if matrix is None else _times(matrix, part, axis, repeat))
        filled += size
        if filled == length:
            rows.append(_joined(row, axis))
            row, filled, done = [], 0, done + count
    covered = done * length + filled
    assert covered == len(blocks) * length, f"runs cover {covered} of {len(blocks) * length}"
    return _joined(rows, 0)


def _times(matrix: Tensor, part: Tensor, axis: int, repeat: int) -> Tensor:
    """Multiply the channels of each block, `repeat` entries each, by the block's matrix."""
    part = part.unflatten(axis, (-1, repeat)).movedim(axis, -1)
    part = torch.einsum("gno,g...o->g...n", matrix, part)
    return part.movedim(-1, axis).flatten(axis, axis + 1)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _stacked(runs: Sequence[Fold], length: int) -> list[Fold]:
    """Return runs whose matrices have a dimension for the blocks, of `length` entries each."""
    return [
        (c, r, None if m is None else m.unflatten(0, (spanned(c * r, length), -1)))
        for c, r, m in runs
    ]


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

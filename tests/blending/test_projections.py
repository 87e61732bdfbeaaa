"""The linear ends: how pieces are blended, and when and in which precision the ends are folded."""

from __future__ import annotations

import pytest
import torch
from models import counted_macs
from torch import nn

from branchprune.blending.projections import EndPiece, Expand, Reduce, apply_folded


def test_a_piece_that_stays_is_blended_by_the_mean_of_those_beside_it() -> None:
    pieces = [EndPiece(3, 2, 1, 1), EndPiece(4, 4, 1, None), EndPiece(5, 1, 1, 0)]
    first, last = torch.randn(3, 2).double(), torch.randn(5, 1).double()
    expand = Expand(pieces, 1, [first, last])
    narrow, wide = torch.randn(2, 7).double(), torch.randn(2, 12).double()
    found = expand(narrow, wide, torch.tensor([0.25, 0.75]).double())
    expected = torch.cat(
        [
            0.75 * wide[:, :3] + 0.25 * narrow[:, :2] @ first.T,
            0.5 * wide[:, 3:7] + 0.5 * narrow[:, 2:6],
            0.25 * wide[:, 7:] + 0.75 * narrow[:, 6:] @ last.T,
        ],
        1,
    )
    assert torch.allclose(found, expected, rtol=1e-12)


def test_ends_are_folded_in_full_precision_under_autocast() -> None:
    """Rows that nearly cancel: in bfloat16 their difference would be 0."""
    layer = nn.Linear(4, 2, bias=False)
    step = 2**-12
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1 + step] * 4, [1.0] * 4]))
    reduce = Reduce([EndPiece(2, 1, 1, 0)], -1, [torch.tensor([[1.0, -1.0]])])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = apply_folded(layer, reduce, None, torch.ones(1000, 4))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.full_like(found, 4 * step))


def convolution(transposed: bool, stride: int) -> nn.Module:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return kind(16, 16, 3, stride, 1, bias=False)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("size", [1, 3, 6, 9, 12])
def test_a_convolution_is_folded_where_that_is_cheaper(
    transposed: bool, stride: int, size: int, batch: int
) -> None:
    """The weight is applied at every output, at every input of a transposed convolution."""
    layer = convolution(transposed, stride)
    reduce = Reduce([EndPiece(16, 8, 1, 0)], 1, [torch.randn(8, 16)])
    x = torch.randn(batch, 16, size, size)
    fold = 8 * layer.weight.numel()
    narrow = nn.ConvTranspose2d if transposed else nn.Conv2d
    folded = fold + counted_macs(narrow(16, 8, 3, stride, 1, bias=False), x)
    apart = counted_macs(lambda x: reduce(layer(x)), x)
    found = counted_macs(lambda x: apply_folded(layer, reduce, None, x), x)
    assert found in (folded, apart)
    # Which one is decided without what the ends cost where they are not folded.
    ends = apart - counted_macs(layer, x)
    assert found <= min(folded, apart) + ends


@pytest.mark.parametrize(
    ("shape", "folds"),
    [((60,), False), ((68,), True), ((2, 40), True), ((40, 2), True), ((3, 20), False)],
)
def test_a_fully_connected_layer_is_folded_from_64_rows_on(
    shape: tuple[int, ...], folds: bool
) -> None:
    """Folded it saves 64·64 − 32·32 multiply-adds a row, and to fold takes 64·64·32 + 32·64·32."""
    layer = nn.Linear(64, 64, bias=False)
    expand = Expand([EndPiece(64, 32, 1, 0)], -1, [torch.randn(64, 32)])
    reduce = Reduce([EndPiece(64, 32, 1, 0)], -1, [torch.randn(32, 64)])
    x = torch.randn(*shape, 32)
    rows = x.numel() // 32
    found = counted_macs(lambda x: apply_folded(layer, reduce, expand, x), x)
    apart = rows * (32 * 64 + 64 * 64 + 64 * 32)
    assert found == (64 * 64 * 32 + 32 * 64 * 32 + rows * 32 * 32 if folds else apart)

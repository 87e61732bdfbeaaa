"""The generated forward code: what layers with further arguments read."""

from __future__ import annotations

import pytest
import torch
from models import relative, scramble
from torch import Tensor, nn

import branchprune as bp


class UpTo(nn.Module):
    """A transposed convolution that is told the size of a tensor that shrinks, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x).relu()
        y = self.up(self.down(skip).relu(), output_size=skip.shape[2:])
        out: Tensor = self.head(y.relu() + skip)
        return out


@pytest.mark.parametrize("side", [32, 31])
def test_the_size_of_an_output_follows_another_tensor(side: int) -> None:
    """32 and 31 are both halved to 16: only the argument says what 16 comes from."""
    model = scramble(UpTo().double().eval())
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended)
    blended.alpha = 0
    expected = spelled_out_with_size(blended, x)
    small = bp.collapse(blended)
    assert small.up.out_channels == 4 and expected.shape[2:] == (side, side)
    assert relative(expected, small(x)) < 1e-12
    assert relative(expected, blended(x)) < 1e-12
    blended.alpha = 0.5
    assert blended(x).shape == expected.shape


def spelled_out_with_size(blended: bp.Blended, x: Tensor) -> Tensor:
    """Compute the branch with the linear ends as explicit matrices."""
    net, reduce, expand = blended.model, blended.reduce, blended.expand

    def mapped(end: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", end.weights[0], x)

    skip = mapped(reduce.a, net.a(x)).relu()
    low = mapped(reduce.down, net.down(mapped(expand.down, skip))).relu()
    wide = net.up(mapped(expand.up, low), output_size=x.shape[2:])
    up = mapped(reduce.up, wide).relu()
    return net.head(mapped(expand.head, up + skip))

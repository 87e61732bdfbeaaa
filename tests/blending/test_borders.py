"""Why `expand` has no bias.

The paper ("Model Pruning", TUM, 2021) reports that its folded model differs a little from the
blended one and leaves the cause open. A bias in the linear map before a convolution explains it:
the convolution pads with zeros, not with that bias, so folding it into the convolution's own
bias is wrong at the border; before a strided transposed convolution it is wrong everywhere.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import relative
from torch import Tensor, nn

import branchprune as bp


def folded_with_bias(layer: nn.Module, expand: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Fold a 1x1 convolution with bias into the layer behind it, as if every tap read an input."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    weight = layer.weight.transpose(0, 1) if transposed else layer.weight
    matrix, bias = expand.weight[:, :, 0, 0], expand.bias
    narrow = torch.einsum("oihw,ij->ojhw", weight, matrix)
    shifted = layer.bias + torch.einsum("oihw,i->o", weight, bias)
    return (narrow.transpose(0, 1) if transposed else narrow), shifted


def errors(layer: nn.Module, bias: bool) -> Tensor:
    """Return where the folded layer differs from the two layers in a row, shape (height, width)."""
    torch.manual_seed(0)
    expand = nn.Conv2d(3, 8, 1).double()
    layer.double()
    if not bias:
        nn.init.zeros_(expand.bias)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    weight, shifted = folded_with_bias(layer, expand)
    small = torch.func.functional_call(layer, {"weight": weight, "bias": shifted}, (x,))
    return (small - layer(expand(x))).abs().amax((0, 1)).detach()


def inside(found: Tensor, border: int) -> Tensor:
    return found[border:-border, border:-border]


@pytest.mark.parametrize(("kernel", "border"), [(3, 1), (5, 2)])
def test_bias_before_zero_padding_is_wrong_at_the_border_only(kernel: int, border: int) -> None:
    found = errors(nn.Conv2d(8, 4, kernel, padding=border), bias=True)
    assert inside(found, border).max() < 1e-12
    frame = torch.ones_like(found, dtype=torch.bool)
    inside(frame, border).fill_(False)
    assert found[frame].min() > 1e-3


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_bias_before_other_padding_is_right(mode: str) -> None:
    layer = nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode)
    assert errors(layer, bias=True).max() < 1e-12


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_bias_before_a_strided_transposed_convolution_is_wrong_everywhere(kernel: int) -> None:
    found = errors(nn.ConvTranspose2d(8, 4, kernel, stride=2), bias=True)
    assert found.min() > 1e-3


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 5, padding=2), nn.ConvTranspose2d(8, 4, 3, 2)],
)
def test_without_bias_it_is_right_everywhere(layer: nn.Module) -> None:
    assert errors(layer, bias=False).max() < 1e-12


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 4, 5, padding=2), nn.ConvTranspose2d(8, 4, 3, stride=2)]
)
def test_the_collapse_is_exact_at_the_border(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layer).double()
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x), init="random")
    blended.alpha = 0
    small = bp.collapse(blended)
    reduce = blended.reduce.get_submodule("0").weights[0]
    expand = blended.expand.get_submodule("2").weights[0]
    narrow = F.conv2d(model[0](x), reduce[..., None, None]).relu()
    expected = layer(F.conv2d(narrow, expand[..., None, None]))
    assert relative(expected, small(x)) < 1e-12

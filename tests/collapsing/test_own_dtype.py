"""What collapse returns is right in its own dtype, not in float64 alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, scramble
from torch import Tensor, nn

import branchprune as bp


def network(scale: float = 1.0) -> nn.Sequential:
    """Convolutions whose weights are scaled down, each with a norm that scales up again."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16, eps=1e-12), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16, eps=1e-12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.mul_(scale)
        for norm in (model[1], model[4]):
            norm.running_var.mul_(scale**2)
    return model.eval()


def blended_in(model: nn.Module, dtype: torch.dtype, x: Tensor) -> bp.Blended:
    model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    blended = bp.attach(model, bp.plan(model, x))
    blended.alpha = 0
    return blended


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_below_the_normal_range_of_a_dtype_are_kept(dtype: torch.dtype) -> None:
    model, x = network(1e-4), torch.randn(4, 3, 8, 8)
    blended = blended_in(model, dtype, x)
    small = bp.collapse(blended)
    assert float(small[0].weight.detach().abs().max()) < 6e-5
    # Computed from what is in the file of a small model, by other means: float64, no flush.
    exact = copy.deepcopy(blended).double().eval()
    assert relative(exact(x.to(dtype).double()), small(x.to(dtype)).double()) < 0.05


def test_a_flush_that_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from branchprune.collapsing import collapse as collapsing

    def flush(tensor: Tensor) -> Tensor:
        return tensor.masked_fill(tensor.abs() < torch.finfo(tensor.dtype).tiny, 0)

    monkeypatch.setattr(collapsing, "flush_subnormals", flush)
    blended = blended_in(network(1e-4), torch.float16, torch.randn(4, 3, 8, 8))
    with pytest.raises(bp.PruneError, match=r"is off by .* in float16, its own dtype, although"):
        bp.collapse(blended)


def ends_scaled(blended: bp.Blended, up: float, layer: str) -> None:
    """Scale what stands behind a layer up, and what stands before the next one down."""
    with torch.no_grad():
        blended.reduce.get_submodule(layer).weights[0].mul_(up)
        for end in blended.expand.modules():
            for weight in getattr(end, "weights", ()):
                weight.div_(up)


def test_a_weight_that_its_dtype_cannot_hold() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        model[0].weight.mul_(10)
    blended = blended_in(model, torch.float16, torch.randn(2, 3, 8, 8))
    ends_scaled(blended, 6e4, "0")
    with pytest.raises(
        bp.PruneError, match=r"^0\.weight of the collapsed model reaches \d.* float16"
    ):
        bp.collapse(blended)
    assert bp.collapse(blended.float())[0].weight.detach().abs().max() > 65504


def test_a_sum_that_overflows_in_its_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    blended = blended_in(model, torch.float16, 100 * torch.rand(2, 3, 8, 8))
    ends_scaled(blended, 3e4, "0")
    with pytest.raises(bp.PruneError, match=r"not finite in float16, its own dtype, although it"):
        bp.collapse(blended)


def test_a_model_that_was_converted_after_attach() -> None:
    model, x = network(), torch.randn(4, 3, 8, 8)
    scramble(model)
    blended = bp.attach(model, bp.plan(model, x))
    blended.alpha = 0
    small = bp.collapse(blended.to(torch.bfloat16))
    assert small[0].weight.dtype == torch.bfloat16
    assert relative(bp.collapse(blended.float())(x), small(x.to(torch.bfloat16)).float()) < 0.1


@pytest.mark.parametrize("beyond", [torch.sqrt, lambda y: 1 / y.relu()])
def test_outputs_that_forward_makes_infinite_or_no_number_are_the_same(
    beyond: Any,
) -> None:
    model = Net(
        lambda m, x: beyond(m.b(F.relu(m.a(x)))),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 4, 1),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    blended = bp.attach(model, bp.plan(model, x))
    blended.alpha = 0
    small = bp.collapse(blended)(x)
    assert not small.isfinite().all()
    torch.testing.assert_close(small, blended.eval()(x), equal_nan=True)

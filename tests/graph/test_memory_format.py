"""Channels last in memory: where a forward takes it, and what stays as it is where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.memory_format import put_channels_last

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def are_last(model: nn.Module) -> bool:
    """Whether the convolutions have the order, and nothing else."""
    kernels = [p for p in model.parameters() if p.dim() == 4 and p[0, 0].numel() > 1]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_a_model_computes_the_same_with_its_weights_in_that_order() -> None:
    models = [vgg().eval(), vgg().eval()]
    with torch.no_grad():
        wanted = [model(X) for model in models]
        assert put_channels_last(models, X)
        assert all(map(are_last, models))
        torch.testing.assert_close([model(X) for model in models], wanted)


FORWARDS: dict[str, Any] = {
    "view fails": lambda self, x: self.fc(self.conv(x).view(len(x), -1)),
    "strides are read": lambda self, x: self.fc(self.conv(x).as_strided((len(x), 256), (256, 1))),
}


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_forward_that_depends_on_the_order_keeps_it(forward: str) -> None:
    model = Net(FORWARDS[forward], conv=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Linear(256, 2))
    good = vgg()
    assert not put_channels_last([good, model], X)
    assert not are_last(model) and not are_last(good)


def test_others_than_images_are_left_alone() -> None:
    model = vgg()
    assert not put_channels_last([model], X.flatten(2))
    assert not are_last(model)


@pytest.mark.filterwarnings("ignore:images")  # the model is not trained
def test_the_small_model_comes_out_in_the_usual_order(monkeypatch: Any) -> None:
    seen: list[bool] = []
    forward = nn.Conv2d.forward

    def noted(self: nn.Conv2d, x: Tensor) -> Tensor:
        if self.weight.requires_grad and torch.is_grad_enabled():
            seen.append(self.weight.is_contiguous(memory_format=torch.channels_last))
        return forward(self, x)

    model = vgg().requires_grad_(False)
    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    given = {"learning_rate": 0.01, "dtype": torch.float32, "steps": 2}
    small = bp.compress(model, X.repeat(3, 1, 1, 1), **given).model  # type: ignore[arg-type]
    assert seen and all(seen)
    assert all(p.is_contiguous() for p in [*small.parameters(), *model.parameters()])

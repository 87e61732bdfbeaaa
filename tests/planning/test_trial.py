"""What would fail in collapse is found by attach, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, scramble
from torch import Tensor, nn

import branchprune as bp

IMAGE = (2, 3, 8, 8)


def net_with(forward: Callable[[Any, Tensor], Tensor]) -> Net:
    return Net(
        forward,
        **{"a": nn.Conv2d(3, 32, 3, padding=1), "norm": nn.BatchNorm2d(32)},
        **{"b": nn.Conv2d(32, 16, 3, padding=1), "out": nn.Conv2d(16, 4, 1)},
    ).eval()


READS_A_WIDTH: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "out_channels": lambda m, x: m.out(F.relu(m.b(F.relu(m.a(x)) * m.a.out_channels**-0.5))),
    "in_channels": lambda m, x: m.out(F.relu(m.b(F.relu(m.a(x)) / m.b.in_channels))),
    "num_features": lambda m, x: m.out(m.b(F.relu(m.norm(m.a(x))) / m.norm.num_features)),
    "if": lambda m, x: m.out(m.b(m.a(x).relu() if m.a.out_channels > 16 else m.a(x).tanh())),
    "training only": lambda m, x: m.out(m.b(m.a(x) / (m.b.in_channels if m.training else 1))),
}


@pytest.mark.parametrize("forward", READS_A_WIDTH.values(), ids=READS_A_WIDTH.keys())
def test_a_forward_that_computes_with_a_width_is_found_before_training(
    forward: Callable[[Any, Tensor], Tensor],
) -> None:
    model = net_with(forward)
    plan = bp.plan(model, torch.randn(IMAGE))
    with pytest.raises(bp.PruneError, match=r"at its planned widths differs from .* b on"):
        bp.attach(model, plan)
    with pytest.raises(bp.PruneError, match=r"at its planned widths differs from .* b on"):
        bp.plan(model, torch.randn(IMAGE), check=True)
    bp.attach(model, bp.plan(model, torch.randn(IMAGE), exclude=["a"], check=True))


def test_a_forward_that_fails_without_a_word_is_named_by_its_kind() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.a.out_channels != 32:
            raise AssertionError
        return m.out(m.b(m.a(x)))

    with pytest.raises(bp.PruneError, match="at its planned widths does not run: AssertionError"):
        bp.plan(net_with(forward), torch.randn(IMAGE), check=True)


def test_a_norm_that_starts_at_zero_hides_nothing() -> None:
    model = net_with(lambda m, x: m.out(m.b(m.norm(m.a(x)) / m.b.in_channels)))
    nn.init.zeros_(model.norm.weight)
    with pytest.raises(bp.PruneError, match="at its planned widths differs"):
        bp.attach(model, bp.plan(model, torch.randn(IMAGE)))


def test_a_layer_whose_weight_is_measured_keeps_its_width() -> None:
    model = net_with(lambda m, x: m.out(m.b(F.relu(m.a(x)) / m.a.weight.shape[0])))
    plan = bp.plan(model, torch.randn(IMAGE), check=True)
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["a"] == "forward itself reads a.weight" and reasons["b"] is None


class TwoNames(nn.Module):
    """A block that registers each layer twice and calls it by the second name, as of nnU-Net."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.all_modules = nn.Sequential(self.conv, self.norm, nn.LeakyReLU())
        self.again = [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.all_modules(x)
        return y


def test_a_layer_with_two_names_changes_at_each(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(TwoNames(3, 16), TwoNames(16, 8), nn.Conv2d(8, 2, 1))
    scramble(model)
    model.eval()
    x = torch.randn(IMAGE)
    blended = bp.attach(model, bp.plan(model, x), init="random")
    blended.alpha = 0
    small: Any = bp.collapse(blended)
    assert small[0].norm is small[0].all_modules[1] is small[0].again[0]
    assert small[0].norm.num_features == 8 and model[0].norm.num_features == 16
    assert relative(blended(x), small(x)) < 1e-5
    bp.save(small, tmp_path / "small.safetensors")
    assert torch.equal(bp.load(model, tmp_path / "small.safetensors")(x), small(x))


class Image(Tensor):
    """A tensor of a class of its own, as of fastai, which deepcopy cannot copy."""

    def __new__(cls, data: Tensor, size: int) -> Image:
        return data.as_subclass(cls)


def test_an_example_of_its_own_class_or_with_a_gradient() -> None:
    before = nn.Conv2d(3, 3, 1)
    for example in (Image(torch.randn(IMAGE), 8), before(torch.randn(IMAGE)), before.weight):
        example = (
            example.reshape(1, 1, 3, 3).expand(1, 3, 3, 3) if example.numel() == 9 else example
        )
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
        plan = bp.plan(model, example)
        assert type(plan.example) is Tensor and plan.example.grad_fn is None
        blended = bp.attach(model, plan)
        blended.alpha = 0
        bp.collapse(blended)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8)])
def test_an_example_without_numbers_is_refused(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(bp.PruneError, match=rf"example has a tensor of shape \({shape[0]}, 3, "):
        bp.plan(model, torch.empty(shape))


def test_what_cannot_be_copied_later_is_found_now() -> None:
    class Once(nn.ReLU):
        copied = False

        def __deepcopy__(self, memo: dict[int, Any]) -> Once:
            if self.copied:
                raise TypeError("it is a copy")
            other = Once()
            other.copied = True
            return other

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Once(), nn.Conv2d(8, 2, 1))
    plan = bp.plan(model, torch.randn(IMAGE))
    with pytest.raises(bp.PruneError, match="cannot be copied by deepcopy: it is a copy"):
        bp.attach(model, plan)


def test_training_is_compared_with_one_example_too() -> None:
    class Pooled(nn.Module):
        """Has one number a channel before its norm, which cannot train on one example."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(F.adaptive_avg_pool2d(self.a(x), 1))
            y: Tensor = self.out(x * self.a.out_channels if self.training else x)
            return y

    with pytest.raises(bp.PruneError, match="at its planned widths differs"):
        bp.attach(Pooled(), bp.plan(Pooled(), torch.randn(1, 3, 8, 8)))


def test_at_one_example_the_blended_model_is_compared_in_training_mode() -> None:
    class Lost(nn.Module):
        """In training mode a hook changes what it returns, which a trace does not see."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(F.adaptive_avg_pool2d(self.a(x), 1))
            y: Tensor = self.out(x)
            return y

    model = Lost()
    model.register_forward_hook(lambda m, _, outputs: outputs + 1 if m.training else outputs)
    with pytest.raises(bp.PruneError, match="differs from the model in training mode"):
        bp.attach(model, bp.plan(model, torch.randn(1, 3, 8, 8)))

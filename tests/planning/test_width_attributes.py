"""Numbers that users' modules keep of their layers' widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.width_attributes import WidthAttribute

IMAGE = (2, 3, 8, 8)


class Block(nn.Module):
    """A block as of RepVGG: it keeps what it needs to fuse itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.groups = inputs, outputs, 1
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def fused(self) -> nn.Conv2d:
        """Return one convolution in place of the block's, by the numbers that the block keeps."""
        layer = nn.Conv2d(self.inputs, self.outputs, 3, padding=1)
        assert self.norm.running_var is not None and self.conv.bias is not None
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        with torch.no_grad():
            layer.weight.copy_(self.conv.weight * scale[:, None, None, None])
            layer.bias.copy_((self.conv.bias - self.norm.running_mean) * scale + self.norm.bias)
        return layer


class Features(nn.Module):
    """A network that says which widths its stages have, in several forms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = Block(3, 16), Block(16, 24), nn.Conv2d(24, 4, 1)
        self.widths, self.last, self.image_size = [16, 24], (24, 4), 16
        self.info: list[dict[str, Any]] = [{"num_chs": 16, "reduction": 1, "module": "a"}]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.b(self.a(x)))
        return y


def collapsed(model: nn.Module, **options: Any) -> nn.Module:
    blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE), **options))
    blended.alpha = 0
    return bp.collapse(blended)


def test_numbers_follow_the_widths(tmp_path: Path) -> None:
    model = Features().eval()
    small: Any = collapsed(model)
    assert small.a.conv.out_channels == 8 and small.b.conv.out_channels == 12
    assert (small.widths, small.last, small.image_size) == ([8, 12], (12, 4), 16)
    assert small.info == [{"num_chs": 8, "reduction": 1, "module": "a"}]
    assert (small.b.inputs, small.b.outputs, small.b.groups) == (8, 12, 1)
    x = torch.randn(2, 8, 8, 8)
    assert relative(small.b(x), F.relu(small.b.fused()(x))) < 1e-5
    assert model.widths == [16, 24] and model.b.inputs == 16
    bp.save(small, tmp_path / "small.safetensors")
    again: Any = bp.load(Features(), tmp_path / "small.safetensors")
    assert (again.widths, again.last, again.info) == (small.widths, small.last, small.info)
    assert (again.b.inputs, again.b.outputs, again.image_size) == (8, 12, 16)


class Scaled(nn.Module):
    """A number that forward computes with, beside one that it does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.width = 16, 16
        self.a, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(F.relu(self.a(x)) * self.c**-0.5)
        return y


def test_a_number_that_forward_computes_with_stays_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Scaled().eval()
    plan = bp.plan(model, torch.randn(IMAGE), check=True)
    assert "attributes that name a width and stay: c = 16" in str(plan).splitlines()
    small: Any = collapsed(model)
    assert caplog.messages[-1].endswith("that name a width of before: c = 16")
    assert (small.c, small.width, small.a.out_channels) == (16, 8, 8)


def test_a_number_that_forward_needs_follows() -> None:
    class Chosen(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            y: Tensor = self.out(x if self.width == self.a.out_channels else torch.tanh(x))
            return y

    small: Any = collapsed(Chosen().eval())
    assert (small.width, small.a.out_channels) == (8, 8)


def test_a_number_that_could_be_one_of_two_widths_stays_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 16
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)))))
            return y

    model = Two()
    plan = bp.plan(model, torch.randn(IMAGE), keep={"a": 0.5, "b": 0.25})
    assert "attributes that name a width and stay: width = 16" in str(plan)
    small: Any = collapsed(model, keep={"a": 0.5, "b": 0.25})
    assert small.width == 16 and caplog.messages[-1].endswith("of before: width = 16")
    caplog.clear()
    assert collapsed(model, keep=0.5).width == 8 and not caplog.messages


def test_a_limit_that_the_example_does_not_reach_stays(caplog: pytest.LogCaptureFixture) -> None:
    class Cropped(Scaled):
        """Crops what is larger than a number that equals a width, and so is the example not."""

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(F.relu(self.a(x[..., : self.c, : self.c])))
            return y

    model: Any = Cropped().eval()
    small: Any = collapsed(model)
    assert not caplog.messages
    assert (small.c, small.width) == (16, 8)
    assert small(torch.randn(1, 3, 32, 32)).shape == model(torch.randn(1, 3, 32, 32)).shape


def test_an_attribute_that_its_class_does_not_let_be_set_follows() -> None:
    class Fixed(Scaled):
        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__dict__ and name == "width":
                raise AttributeError(name)
            super().__setattr__(name, value)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(F.relu(self.a(x)))
            return y

    small: Any = collapsed(Fixed().eval())
    assert small.width == 8


def test_of_a_long_value_the_beginning_is_shown() -> None:
    long = {f"stage {i}": {"width": 64, "out": [64, 128]} for i in range(9)}
    shown = str(WidthAttribute("net", "settings", long, None))
    assert shown.startswith("net.settings = {'stage 0': ") and len(shown) == 15 + 32
    assert str(WidthAttribute("", "width", 64, 32)) == "width = 64 → 32"

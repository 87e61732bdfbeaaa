"""The layers that the steps of random networks are made of, and the registry of the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One part of a random network; `inner` is what stands inside it, if it has an inside."""

    kind: str
    width: int
    kernel: int
    stride: int
    groups: int
    bias: bool
    norm: str
    activation: str
    inner: Step | None


Builder = Callable[[Step, int, int], tuple[nn.Module, int]]
KINDS: dict[str, Builder] = {}
"""Each takes the step, the channels that it reads and the dimensions; widths are multiples of 4."""
SHRINKS, GROWS = (
    {"max", "lp pool", "pixel unshuffle"},
    {"up", "up depthwise", "pixel shuffle", "upsample"},
)
CHANGE_SIZE = SHRINKS | GROWS | {"adaptive", "pad"}
ONLY_2D = {"pixel shuffle", "pixel unshuffle"}


def kind(name: str) -> Callable[[Builder], Builder]:
    def add(builder: Builder) -> Builder:
        KINDS[name] = builder
        return builder

    return add


def of(kind: str, dims: int) -> Any:
    """Return the class of a layer by its name without the number of dimensions."""
    return getattr(nn, f"{kind}{dims}d")


class LayerNorm(nn.LayerNorm):
    """Over the channels of an image, as in ConvNeXt: the forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, -1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.transpose(1, -1)


class Frozen(nn.Module):
    """A norm whose numbers are buffers, as in detectors."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            self.register_buffer(name, torch.full((width,), float(value)))
        self.shape = (1, -1, *[1] * dims)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(self.shape) * (self.running_var.reshape(self.shape)).rsqrt()
        return x * scale + (self.bias.reshape(self.shape) - self.running_mean.view(self.shape))


def norm(kind: str, width: int, dims: int) -> nn.Module:
    return {
        "batch": lambda: of("BatchNorm", dims)(width, eps=1e-3),
        "group": lambda: nn.GroupNorm(2, width),
        "instance": lambda: of("InstanceNorm", dims)(width, affine=True),
        "tracked": lambda: of("InstanceNorm", dims)(width, track_running_stats=True),
        "layer": lambda: LayerNorm(width),
        "frozen": lambda: Frozen(width, dims),
        "none": nn.Identity,
    }[kind]()


def activation(kind: str, width: int) -> nn.Module:
    return {
        "relu": nn.ReLU(),
        "inplace": nn.ReLU(inplace=True),
        "prelu": nn.PReLU(width),
        "slope": nn.PReLU(),
        "gelu": nn.GELU(),
        "hardswish": nn.Hardswish(),
        "tanh": nn.Tanh(),
        "none": nn.Identity(),
    }[kind]


def block(s: Step, inputs: int, width: int, dims: int, **options: Any) -> nn.Sequential:
    """Return a convolution that keeps the size, a norm and an activation."""
    options = {"padding": s.kernel // 2, "bias": s.bias} | options
    layer = of("Conv", dims)(inputs, width, s.kernel, **options)
    return nn.Sequential(layer, norm(s.norm, width, dims), activation(s.activation, width))

"""The steps that random networks are made of: each reads some channels and makes a module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from models import Net
from random_layers import KINDS, Step, activation, block, kind, norm, of
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


def inside(s: Step, inputs: int, width: int, dims: int) -> nn.Module:
    """Return the inner step, if there is one, and a block that makes a given width."""
    if s.inner is None:
        return block(s, inputs, width, dims)
    part, between = KINDS[s.inner.kind](replace(s.inner, stride=1), inputs, dims)
    return nn.Sequential(part, block(s, between, width, dims))


@kind("conv")
def conv(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return block(s, c, s.width, d, groups=s.groups, stride=s.stride), s.width


@kind("up")
def up(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    layer = of("ConvTranspose", d)(c, s.width, 2, 2, bias=s.bias, groups=s.groups)
    behind = norm(s.norm, s.width, d), activation(s.activation, s.width)
    return nn.Sequential(layer, *behind), s.width


@kind("depthwise")
def depthwise(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    width = 2 * c if c <= 16 else c
    return block(s, c, width, d, groups=c, stride=s.stride), width


@kind("up depthwise")
def up_depthwise(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    width = s.groups * c if c <= 16 else c
    return of("ConvTranspose", d)(c, width, 2, 2, groups=c, bias=s.bias), width


@kind("residual")
def residual(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return Net(lambda m, x: F.relu(x + m.body(x)), body=inside(s, c, c, d)), c


@kind("concat")
def concat(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    net = Net(lambda m, x: torch.cat([x, m.body(x)], 1), body=inside(s, c, s.width, d))
    return net, c + s.width


@kind("branches")
def branches(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        return torch.maximum(a, b) - 0.5 * a

    return Net(run, a=inside(s, c, s.width, d), b=block(s, c, s.width, d)), s.width


@kind("gate")
def gate(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    layer = of("Conv", d)
    return Net(
        lambda m, x: x * m.up(F.relu(m.down(x.mean(m.space, keepdim=True)))).sigmoid(),
        down=layer(c, s.width, 1),
        up=layer(s.width, c, 1),
        space=tuple(range(2, 2 + d)),
    ), c


@kind("gate by linear")
def gate_by_linear(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        gate = m.up(F.silu(m.down(m.pool(x).flatten(1))))
        return x * torch.sigmoid(gate.view(x.size(0), x.size(1), *[1] * d))

    pool = of("AdaptiveAvgPool", d)(1)
    return Net(run, pool=pool, down=nn.Linear(c, s.width), up=nn.Linear(s.width, c)), c


@kind("twice")
def twice(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    """One block that reads two tensors, as in siamese networks, and one that reads its own."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.again(m.again(m.body(x))) + m.body(0.5 * x + 1)

    return Net(run, body=inside(s, c, s.width, d), again=block(s, s.width, s.width, d)), s.width


@kind("overwrite")
def overwrite(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.body(x) + 0
        row, second = y[:, :, :1], y.detach() if m.training else y[...]
        y[:, :, -1:] = row.sigmoid()
        row.mul_(2)
        return y + second.sum(2, keepdim=True)

    return Net(run, body=inside(s, c, s.width, d)), s.width


@kind("shuffle")
def shuffle(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        n, c, space = x.size(0), x.size(1), [x.size(i + 2) for i in range(d)]
        x = x.view(n, 2, c // 2, *space).transpose(1, 2).contiguous()
        return m.second(x.view(n, -1, *space))

    first = block(s, c, s.width, d, groups=s.groups)
    second = block(s, s.width, s.width, d, groups=s.groups)
    return Net(run, first=first, second=second), s.width


@kind("channel shuffle")
def channel_shuffle(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    first, second = block(s, c, s.width, d), block(s, s.width, s.width, d, groups=s.groups)
    return nn.Sequential(first, nn.ChannelShuffle(2 if s.bias else 4), second), s.width


@kind("shufflenet")
def shufflenet(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        kept, worked = m.first(x).chunk(2, dim=1)
        x = torch.cat((kept, m.second(worked)), dim=1)
        n, c, space = x.size(0), x.size(1), [x.size(i + 2) for i in range(d)]
        return x.view(n, 2, c // 2, *space).transpose(1, 2).reshape(n, c, *space)

    first, second = block(s, c, s.width, d), inside(s, s.width // 2, s.width // 2, d)
    if s.norm == "group":
        first = of("Conv", d)(c, s.width, 1)
    return Net(run, first=first, second=second), s.width


@kind("grouped shuffle")
def grouped_shuffle(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        y = F.channel_shuffle(m.first(x), s.groups)
        y = m.third(m.second(y))
        return torch.cat([x, y], 1) if s.bias else x + y

    outputs = s.width if s.bias else c
    first = block(s, c, s.width, d, groups=s.groups)
    second = of("Conv", d)(s.width, s.width, 3, padding=1, groups=s.width)
    third = block(s, s.width, outputs, d, groups=s.groups)
    return Net(run, first=first, second=second, third=third), c + s.width if s.bias else c


@kind("glu")
def glu(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    if s.bias:
        return nn.Sequential(of("Conv", d)(c, 2 * s.width, 1), nn.GLU(1)), s.width
    return Net(lambda m, x: F.glu(m.body(x), dim=1), body=inside(s, c, 2 * s.width, d)), s.width


@kind("tanh gate")
def tanh_gate(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.both(x).chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    return Net(run, both=inside(s, c, 2 * s.width, d)), s.width


@kind("split")
def split(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        top, bottom = torch.split(m.body(x), [1, x.size(-1) - 1], dim=-1)
        low, high = bottom.chunk(2, 2) if d > 1 else (top, bottom)
        return torch.cat([top, torch.cat([high, low], 2) if d > 1 else bottom * 2], -1)

    return Net(run, body=block(s, c, s.width, d)), s.width


@kind("maxout")
def maxout(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    body = inside(s, c, 2 * s.width, d)
    return Net(lambda m, x: m.body(x).unflatten(1, (-1, 2)).amax(2), body=body), s.width


@kind("unflatten")
def unflatten(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return Net(
        lambda m, x: m.parts(m.body(x)).mean(2),
        body=block(s, c, 2 * s.width, d),
        parts=nn.Unflatten(1, (s.width, 2)),
    ), s.width


@kind("halves")
def halves(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    body = inside(s, c, 2 * s.width, d)
    return Net(lambda m, x: m.body(x).unflatten(1, (2, -1)).sum(1), body=body), s.width


@kind("stack")
def stack(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    a, b = inside(s, c, s.width, d), block(s, c, s.width, d)
    return Net(lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), a=a, b=b), s.width


@kind("stack and max")
def stack_and_max(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return Net(lambda m, x: torch.stack([x, m.b(x)], -1).amax(-1), b=block(s, c, c, d)), c


@kind("pixel shuffle")
def pixel_shuffle(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return nn.Sequential(block(s, c, 4 * s.width, d), nn.PixelShuffle(2)), s.width


@kind("pixel unshuffle")
def pixel_unshuffle(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    body = nn.Sequential(nn.AdaptiveAvgPool2d((4, 6)), nn.PixelUnshuffle(2))
    return body.append(block(s, 4 * c, s.width, d)), s.width


def to_last(d: int) -> tuple[list[int], list[int]]:
    """Return the orders of dimensions that bring the channels last, and back."""
    return [0, *range(2, d + 2), 1], [0, d + 1, *range(1, d + 1)]


@kind("channels last")
def channels_last(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    last, first = to_last(d)
    layers = nn.LayerNorm(c), nn.Linear(c, s.width, s.bias), nn.RMSNorm(s.width)
    body = nn.Sequential(*layers, nn.GELU(), nn.Linear(s.width, c))
    return Net(lambda m, x: m.body(x.permute(last)).permute(*first), body=body), c


@kind("convnext")
def convnext(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    last, first = to_last(d)

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.mlp(m.norm(m.spread(x).permute(last)))
        return x + m.drop((m.scale * y).permute(first))

    return Net(
        run,
        spread=of("Conv", d)(c, c, 3, padding=1, groups=c),
        norm=nn.LayerNorm(c),
        mlp=nn.Sequential(nn.Linear(c, s.width), nn.GELU(), nn.Linear(s.width, c)),
        scale=nn.Parameter(torch.full((c,), 0.5)),
        drop=StochasticDepth(0.3, "row"),
    ), c


@kind("layer scale")
def layer_scale(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return Net(
        lambda m, x: x + m.drop(m.scale * m.body(x)),
        body=inside(s, c, c, d),
        scale=nn.Parameter(torch.full((c, *[1] * d), 0.5)),
        drop=StochasticDepth(0.5, "batch"),
    ), c


class Causal(nn.Conv1d):
    """A convolution that sees the past alone: the forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2 * self.dilation[0], 0)))


class Same(nn.Conv2d):
    """A convolution that pads by itself: the forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


@kind("own forward")
def own_forward(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    layers = {1: Causal, 2: Same, 3: nn.Conv3d}
    layer = layers[d](c, s.width, 3, bias=s.bias, padding=int(d == 3))
    return nn.Sequential(layer, activation(s.activation, s.width)), s.width


@kind("shift")
def shift(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return Net(
        lambda m, x: (m.body(x) + m.shift.view(1, -1, *[1] * d)).clamp(min=-1),
        body=inside(s, c, s.width, d),
        shift=nn.Parameter(torch.zeros(s.width)),
    ), s.width


@kind("dropout")
def dropout(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    kinds = {1: nn.Dropout(0.3), 2: getattr(nn, f"Dropout{d}d")(0.3)}
    return nn.Sequential(kinds[s.stride], nn.AlphaDropout(0.1)), c


@kind("max")
def max_pool(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return of("MaxPool", d)(3, 2, 1), c


@kind("avg")
def avg_pool(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return of("AvgPool", d)(3, 1, 1, count_include_pad=s.bias), c


@kind("adaptive")
def adaptive_pool(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return of("AdaptiveAvgPool" if s.bias else "AdaptiveMaxPool", d)(3), c


@kind("lp pool")
def lp_pool(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    return nn.Sequential(nn.Sigmoid(), of("LPPool", d)(2, 2, 1)), c


@kind("pad")
def pad(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    if s.bias:
        return Net(lambda m, x: F.pad(x, (1, 0) * d, value=0.5)), c
    name = {4: "ZeroPad", 8: "ReflectionPad", 12: "CircularPad"}[s.width]
    return of(name, d)(1), c


@kind("upsample")
def upsample(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    if s.bias:
        return nn.Upsample(scale_factor=2, mode={1: "linear", 2: "bicubic", 3: "trilinear"}[d]), c
    return Net(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="nearest")), c

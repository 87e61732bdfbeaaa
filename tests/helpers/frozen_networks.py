"""Networks in which a group stays as wide as it is, with the group and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from models import Net
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def pair(run: Callable[..., object], **layers: nn.Module) -> nn.Module:
    return Net(run, **({"a": conv(3, 8), "b": conv(8, 4)} | layers))


def tied() -> nn.Module:
    model = pair(lambda m, x: m.b(m.c(m.a(x).relu()).relu()), c=conv(8, 8))
    model.c.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    model.b = conv(8, 8)
    model.b.weight = model.c.weight
    return model


def hooked() -> nn.Module:
    model = pair(lambda m, x: m.b(m.a(x).relu()))
    model.a.register_forward_hook(lambda *_: None)
    return model


def old_weight_norm() -> nn.Module:
    model = pair(lambda m, x: m.b(m.a(x).relu()))
    model.a.register_forward_pre_hook(lambda *_: None)
    return model


def read_by_hand() -> nn.Module:
    return pair(lambda m, x: F.conv2d(m.b(m.a(x).relu()), m.b.weight.transpose(0, 1)))


def inner_output(m: Any, x: Tensor) -> object:
    y = m.a(x)
    return {"y": m.b(y), "z": [y]}


def sum_of_two(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(torch.cat([m.c(x), m.d(x)], 1) + y) + m.g(y)


FROZEN: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "output": (lambda: pair(lambda m, x: m.b(m.a(x))), "b", "it is an output of the model"),
    "inner output": (lambda: pair(inner_output), "a", "it is an output of the model"),
    "cumsum": (
        lambda: pair(lambda m, x: m.b(m.a(x).cumsum(1))),
        "a",
        "read by `cumsum` (in 3): it mixes the channels",
    ),
    "softmax": (
        lambda: pair(lambda m, x: m.b(m.a(x).softmax(1))),
        "a",
        "read by `softmax` (in 3): it mixes the channels",
    ),
    "softmax module": (
        lambda: pair(lambda m, x: m.b(m.s(m.a(x))), s=nn.Softmax(1)),
        "a",
        "read by s (Softmax): it mixes the channels",
    ),
    "view by number": (
        lambda: pair(lambda m, x: m.fc(m.a(x).view(-1, 512)), fc=nn.Linear(512, 3)),
        "a",
        "read by `view` (in 3): it names the size 512",
    ),
    "reshape by number": (
        lambda: pair(lambda m, x: m.b(torch.reshape(m.a(x), (2, 8, 4, 16)))),
        "a",
        "read by `reshape` (in 3): it names the size 8",
    ),
    "view that splits": (
        lambda: pair(lambda m, x: m.b(m.a(x).view(2, 4, 2, 8, 8).flatten(1, 2))),
        "a",
        "read by `view` (in 3): it names the size 4",
    ),
    "shared weight": (tied, "c", "b and c share a weight"),
    "weight_norm": (
        lambda: pair(lambda m, x: m.b(m.a(x)), a=parametrizations.weight_norm(conv(3, 8))),
        "a",
        "a is parametrised",
    ),
    "behind weight_norm": (
        lambda: pair(lambda m, x: m.b(m.a(x)), b=parametrizations.weight_norm(conv(8, 4))),
        "a",
        "b is parametrised",
    ),
    "forward hook": (hooked, "a", "a has forward hooks"),
    "forward pre-hook": (old_weight_norm, "a", "a has forward hooks"),
    "weight read by forward": (read_by_hand, "a", "forward itself reads b.weight"),
    "slice": (
        lambda: pair(lambda m, x: m.b(m.a(x)[:, :4]), b=conv(4, 4)),
        "a",
        "`getitem` (in 3) names the size 4",
    ),
    "index": (
        lambda: pair(lambda m, x: m.b(m.a(x)[:, torch.tensor([1, 0] * 4)])),
        "a",
        "read by `getitem` (in 3): it mixes all channels, or picks some",
    ),
    "mean of everything": (
        lambda: pair(lambda m, x: m.b(m.a2(x).relu() / m.a(x).mean()), a2=conv(3, 8)),
        "a",
        "read by `mean` (in 3): it mixes all channels",
    ),
    "constant": (
        lambda: pair(lambda m, x: m.b(m.a(x) * torch.ones(8, 1, 1))),
        "a",
        "tied by `mul` (in 3) to a constant of forward, whose width stays",
    ),
    "tied to the image": (
        lambda: pair(lambda m, x: m.b(m.a(x) + torch.cat([x, x, x.flip(1)[:, :2]], 1))),
        "a",
        "behind `flip` (in 3): it reverses the channels",
    ),
    "nobody reads it": (
        lambda: pair(lambda m, x: (m.b(m.a(x)), m.c(x).shape[2]), c=conv(3, 6)),
        "c",
        "no layer reads it",
    ),
    "padded channels": (
        lambda: pair(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 1, 1))), b=conv(10, 4)),
        "a",
        "read by `pad` (in 3): it pads the channels",
    ),
    "pooled channels": (
        lambda: pair(
            lambda m, x: m.fc(F.max_pool2d(m.l(x), 2)), l=nn.Linear(8, 6), fc=nn.Linear(3, 2)
        ),
        "l",
        "read by `max_pool2d` (in 3): it changes the number of channels",
    ),
    "another dimension": (
        lambda: pair(lambda m, x: m.fc(m.a(x)), fc=nn.Linear(8, 2)),
        "a",
        "read by fc (Linear): it acts on another dimension than the channels",
    ),
    "GroupNorm of a layer and the image": (
        lambda: pair(
            lambda m, x: m.g(m.n(torch.cat([m.a(x), x.abs().cumsum(1), x], 1))),
            n=nn.GroupNorm(2, 14),
            g=conv(14, 4),
        ),
        "a",
        "each block of GroupNorm n keeps as many, and one holds channels that stay "
        "(behind `cumsum` (in 3): it mixes the channels)",
    ),
    "different dimensions": (
        lambda: pair(lambda m, x: m.b(m.a(x) + m.l(x.mean(1, keepdim=True))), l=nn.Linear(8, 8)),
        "l",
        "read by `add` (in 3): it combines channels of different dimensions",
    ),
}

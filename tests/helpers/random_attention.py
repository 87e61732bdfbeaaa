"""Steps of random networks that read all channels at once: attention, and norms over channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models import Net
from random_layers import Step, block, kind
from random_parts import inside
from torch import Tensor, nn


@kind("attention module")
def attention(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.body(x).flatten(2).transpose(1, 2)
        z = x.flatten(2).transpose(1, 2)
        y = m.att(y, *[z if s.groups > 1 else y] * 2, need_weights=False)[0]
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])

    options = {"bias": s.bias, "add_bias_kv": s.kernel > 1, "dropout": 0.1 * (s.stride - 1)}
    attention = nn.MultiheadAttention(c, 2, batch_first=True, **options)
    return Net(run, body=inside(s, c, c, d), att=attention), c


@kind("norm by function")
def norm_by_function(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.body(x).transpose(1, -1)
        if s.bias:
            return F.layer_norm(x, x.shape[-1:], m.weight, m.shift).transpose(1, -1)
        return F.rms_norm(x, [x.shape[-1]], m.weight).transpose(1, -1)

    names = ("weight", "shift") if s.bias else ("weight",)
    weights = {name: nn.Parameter(torch.ones(s.width)) for name in names}
    return Net(run, body=block(s, c, s.width, d), **weights), s.width


@kind("norm of two layers")
def norm_of_two(s: Step, c: int, d: int) -> tuple[nn.Module, int]:
    groups = 4 if s.bias else 2
    run = lambda m, x: m.norm(torch.cat([x, m.body(x)], 1))  # noqa: E731
    return Net(run, body=inside(s, c, s.width, d), norm=nn.GroupNorm(groups, c + s.width)), (
        c + s.width
    )

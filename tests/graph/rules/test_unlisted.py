"""Operations without a rule: those that treat channels alike are found out, all others refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.build import analyse

ALIKE = """
    y.clip(-1, 1) | y.clamp_min(0.1) | abs(y) | y.floor() + y | torch.sign(y) * y | y % 1 | y // 2 |
    torch.atan(y) | y * (y.round() >= 0) | y.clone().fill_(0) + y | F.threshold(y, 0.1, 0) |
    torch.max(y, -y) | torch.atan2(y, z) | y.clamp(min=z) | F.mse_loss(y, z, reduction='none') |
    torch.logical_and(y > 0, z > 0) * y | ((y > 0) ^ (z > 0)) * y | ~(y > 0) * y |
    torch.frexp(y)[0] | y * y.softmax(2) | F.log_softmax(y, -1) |
    y.softmax(3, dtype=torch.float32) |
    y / (y.std((2, 3), keepdim=True) + 1) | torch.var_mean(y, (2, 3))[0] | y.var(-1) |
    y * y.max(3, keepdim=True)[0] | y.min(2).values | y.aminmax(dim=2)[1] | y.topk(2, 3)[0] |
    y.sort(2)[0] | y.argmax(2) | y.median(2)[0] | y.quantile(0.3, dim=2) | y.logsumexp((2, 3)) |
    y / (y.norm(dim=(2, 3), keepdim=True) + 1) | torch.linalg.vector_norm(y, dim=3) |
    F.normalize(y, dim=2) | F.cosine_similarity(y, z, dim=3) | torch.roll(y, 1, 2) |
    y.roll((1, 2), (2, -1)) | y.cumsum(2) | y.cummax(3)[0] | y.diff(dim=2) | y.unfold(2, 2, 1) |
    torch.movedim(torch.movedim(y, 1, -1), -1, 1) | torch.moveaxis(y, 3, 2) | y.mT | y.data |
    F.unfold(y, 3, padding=1) | F.fold(F.unfold(y, 2, stride=2), (4, 6), 2, stride=2) |
    self.windows(y) | F.fold(y.flatten(2), (5, 7), 2) | F.interpolate(y, size=y.shape[2:]) |
    F.grid_sample(y, y.new_zeros(y.shape[0], 2, 2, 2), align_corners=False) |
    F.grid_sample(y, grid.permute(0, 2, 3, 1), align_corners=False) | y.narrow(2, 0, 3) |
    y.index_select(2, torch.tensor([1, 3])) | y[:, :, [0, 2]] | y[torch.tensor([1, 0])] |
    y[:, :, torch.tensor([0, 2]), torch.tensor([1, 3])] | y.gather(2, z.argsort(2)) |
    F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2) | F.lp_pool2d(y, 2, 2) |
    torch.stack(y.tensor_split(2, 2), 2)[:, :, 0] | y.repeat_interleave(2, 1) |
    torch.tile(y, (1, 2, 1, 1)) | torch.hstack([y, z]) | torch.rot90(y, 1, (2, 3)) |
    torch.fft.fft2(y).abs() | y.diagonal(dim1=2, dim2=3) | torch.tril(y) | y @ y.new_ones(6, 3) |
    torch.zeros_like(y) + y | torch.where(y > 0, y, torch.ones_like(y)) | y + y.new_zeros(y.shape) |
    y + y.new_ones(y.shape[0], y.shape[1], 1, 1) | y + torch.full((y.shape[1], 1, 1), 0.5) |
    y * (torch.rand_like(y) < 2) | y + 0 * torch.randn(y.size()) | y * y.new_ones(1) |
    y * y.new_empty((y.shape[0], 1, 1, 1)).bernoulli_(1) | F.group_norm(y, 2) | self.soft(y) |
    F.conv2d(y, self.blur.expand(y.shape[1], -1, -1, -1), groups=y.shape[1]) |
    F.prelu(y, self.slopes) | torch.clamp(y, max=self.tops) |
    F.layer_norm(y, (4, 6)) | F.layer_norm(y, y.shape[1:]) |
    y[..., None].squeeze(-1).renorm(2, 1, 0.5) | self.parts(y)[0]
"""
"""Expressions of y and z (2, 8, 4, 6), both made by layers, whose channels are in dimension 1."""
UNLIKE = """
    y.softmax(1) | y.softmax(-3) | F.log_softmax(y, 1) | F.normalize(y) | y.norm(dim=1) | y.std() |
    y.std(1, keepdim=True) | torch.roll(y, 1, 1) | y.roll(1) | y.roll(8, 1) | y.cumsum(1) |
    y.cummax(1)[0] | y.sort(1)[0] | y.argsort(1) | y.topk(2, 1)[0] | y.topk(8, 1)[0] | y.max(1)[0] |
    y.logsumexp(1) | y.narrow(1, 0, 4) | y.narrow(1, 0, 8) | y.select(1, 0) | y.diff(dim=1) |
    y.index_select(1, torch.tensor([1, 3])) | y[:, torch.arange(8)] | y[y > 0] |
    y.take(y.argmax()) |
    y.gather(1, (z > 0).long()) | y.masked_scatter(y > 0, z) | y.renorm(2, 0, 1e7) | y.fliplr() |
    torch.tril(y.permute(0, 2, 3, 1)) | y.ravel() | y.unfold(1, 2, 1) | torch.fft.fft(y, dim=1) |
    F.cosine_similarity(y, z, dim=1) | F.mse_loss(y, z) |
    y * torch.arange(y.shape[1])[:, None, None] |
    torch.cdist(y.flatten(2), z.flatten(2)) |
    y.tensor_split(2, 1)[0] |
    torch.eye(y.shape[1]) @ y.flatten(2) | y.index_fill(1, torch.tensor([0, 1]), 0.0) |
    torch.einsum('nchw,ndhw->ncd', y, y) | F.gumbel_softmax(y, dim=2) |
    y.flatten(2).diagonal(dim1=1, dim2=2) | torch.histc(y) | self.softmax(y)
"""
"""Expressions that mix, pick, count or name the channels, or that draw at random as none should."""


NAMES: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}


class Tried(nn.Module):
    """An expression between layers; behind it, the mean of each channel."""

    def __init__(self, expression: str, width: int = 0) -> None:
        super().__init__()
        self.y, self.z, self.grid = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1)
        self.soft, self.softmax, self.parts = (
            nn.Softmax(2),
            nn.Softmax(1),
            nn.MaxPool2d(2, return_indices=True),
        )
        self.windows = nn.Unfold(2)
        self.register_buffer("blur", torch.rand(1, 1, 2, 2))
        self.slopes, self.tops = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(width, 3) if width else nn.Identity()
        self.code = compile(expression, expression, "eval")

    def forward(self, x: Tensor) -> Tensor:
        made = {"y": self.y(x), "z": self.z(x), "grid": self.grid(x).tanh(), "self": self}
        found: Tensor = eval(self.code, NAMES | made)
        return self.head(
            found.to(x.dtype).flatten(2).mean(2) if found.dim() > 2 else found.to(x.dtype)
        )


def expressions(listed: str) -> list[str]:
    return [" ".join(each.split()) for each in listed.replace("\n", " ").split(" | ")]


X = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("expression", expressions(ALIKE))
def test_channels_that_are_treated_alike_shrink_exactly(expression: str) -> None:
    torch.manual_seed(0)
    width = Tried(expression).double()(X).shape[1]
    model = scramble(Tried(expression, width).double().eval())
    plan = bp.plan(model, X, keep=0.5)
    group = next(group for group in plan.groups if group.name == "y")
    assert group.reason is None and 2 * group.kept == group.width
    blended = scramble(bp.attach(model, plan), seed=2)
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad(), torch.random.fork_rng():
        assert small.y.out_channels == 4
        expected = spelled_out(blended)(X)
        assert relative(expected, small(X)) < 1e-10
        assert relative(expected, blended(X)) < 1e-10


@pytest.mark.parametrize("expression", expressions(UNLIKE))
def test_channels_that_are_not_treated_alike_stay(expression: str) -> None:
    groups = analyse(Tried(expression).eval(), X.float()).groups
    reason = next(group.reason for group in groups if group.name == "y")
    assert reason is not None and reason != "no layer reads it"

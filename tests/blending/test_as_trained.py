"""Networks as people train them: several inputs, outputs and losses, averages of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import StochasticDepth

import branchprune as bp
from branchprune.collapsing.collapse import collapse_with_error

ALPHAS = (1.0, 0.6, 0.2, 0.0, 0.0)
Loss = Callable[[nn.Module], Tensor]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class Residual(nn.Module):
    """A block of EDSR, whose branch is scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.ReLU(inplace=True), conv(width, width))
        self.res_scale = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mul(self.res_scale) + x  # type: ignore[no-any-return]


class SuperResolution(nn.Module):
    """EDSR (Lim et al., 2017): a stream of residual blocks, and pixel shuffles behind it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = conv(3, width)
        self.body = nn.Sequential(Residual(width), Residual(width), conv(width, width))
        self.tail = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2), conv(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.body(x) + x)  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """One encoder for two images."""

    def __init__(self) -> None:
        super().__init__()
        layers = (conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16, 2), nn.BatchNorm2d(16))
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(16, 6)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.normalize(self.head(self.encoder(x)), dim=1) for x in (first, second))


class DeepSupervision(nn.Module):
    """A U-Net of volumes with an output at each level, as nnU-Net trains them."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layer = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
            return nn.Sequential(layer, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU())

        self.down = nn.ModuleList([block(1, 8, 1), block(8, 12, 2), block(12, 16, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(16, 12, 2, 2), nn.ConvTranspose3d(12, 8, 2, 2)])
        self.after = nn.ModuleList([block(24, 12, 1), block(16, 8, 1)])
        self.heads = nn.ModuleList([nn.Conv3d(12, 3, 1), nn.Conv3d(8, 3, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        skips, outputs = [], []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for level, (up, after, head) in enumerate(
            zip(self.up, self.after, self.heads, strict=True)
        ):
            x = after(torch.cat((up(x), skips[-(level + 2)]), 1))
            outputs.append(head(x))
        return outputs[::-1]


class Dropping(nn.Module):
    """Residual blocks that are dropped at random (Huang et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.blocks = nn.ModuleList([Residual(12) for _ in range(2)])
        self.drop = StochasticDepth(0.3, "row")
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.drop(block.body(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def pixels(model: nn.Module) -> Tensor:
    return F.l1_loss(model(torch.rand(2, 3, 8, 8)), torch.rand(2, 3, 16, 16))


def contrastive(model: nn.Module) -> Tensor:
    """Same pairs come closer, others go apart up to a margin (Hadsell et al., 2006)."""
    first, second = model(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8))
    distance, same = (first - second).norm(dim=1), torch.tensor([1.0, 0.0, 1.0, 0.0])
    return (same * distance**2 + (1 - same) * (1 - distance).clamp(min=0) ** 2).mean()


def voxels(model: nn.Module) -> Tensor:
    target = torch.randint(0, 3, (2, 8, 8, 8))
    losses = [
        F.cross_entropy(F.interpolate(output, target.shape[1:]), target) / 2**level
        for level, output in enumerate(model(torch.rand(2, 1, 8, 8, 8)))
    ]
    return torch.stack(losses).sum()


def classes(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.randint(0, 4, (4,)))


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Loss]] = {
    "super-resolution": (SuperResolution, torch.rand(1, 3, 8, 8), pixels),
    "siamese": (Siamese, (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)), contrastive),
    "deep supervision": (DeepSupervision, torch.rand(2, 1, 8, 8, 8), voxels),
    "stochastic depth": (Dropping, torch.rand(1, 3, 8, 8), classes),
}


@pytest.mark.parametrize("name", CASES)
def test_training_and_its_average_collapse_exactly(name: str) -> None:
    make, example, loss = CASES[name]
    torch.manual_seed(0)
    plan = bp.plan(make().eval(), example, keep=0.5)
    torch.manual_seed(0)
    blended = bp.attach(make(), plan)
    average: Any = AveragedModel(blended, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(blended.parameters(), 1e-2)
    start = [p.detach().clone() for p in blended.parameters()]
    for alpha in ALPHAS:
        blended.alpha = average.module.alpha = alpha
        optimizer.zero_grad()
        loss(blended.train()).backward()
        optimizer.step()
        average.update_parameters(blended)
    moved = [not torch.equal(a, b) for a, b in zip(start, blended.parameters(), strict=True)]
    assert sum(moved) >= 0.9 * len(moved)
    for trained in (blended.eval(), average.module.eval()):
        small, error = collapse_with_error(trained)
        assert error <= 1e-10
        assert sum(p.numel() for p in small.parameters()) == plan.after.params
        assert plan.after.params < 0.4 * plan.before.params
        assert loss(small.train()).isfinite()

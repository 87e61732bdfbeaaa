"""A chain of layers and its branch, computed by hand: outputs, both paths at each end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from models import scramble
from torch import Tensor, nn

import branchprune as bp

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def chain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)),
    )


def blended_of(model: nn.Module, **options: Any) -> bp.Blended:
    model = scramble(model.double())
    blended = bp.attach(model, bp.plan(model, X), **options)
    return scramble(blended, seed=6).train()


def both_paths(
    blended: bp.Blended, alphas: tuple[float, float]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Compute `chain`, and at each end branch and wide path, every matrix as it is written."""
    net, twin = blended.model, blended.twin.get_submodule("1")
    a = [blended.reduce.get_submodule(name).weights[0] for name in ("0", "4")]
    b = [blended.expand.get_submodule(name).weights[0] for name in ("4", "7")]
    z = F.conv2d(X, net[0].weight, net[0].bias, padding=1)
    norm = (None, None, net[1].weight, net[1].bias, True)
    wide = F.max_pool2d(F.batch_norm(z, *norm).relu(), 2)
    z = torch.einsum("kc,nchw->nkhw", a[0], z)
    norm = (None, None, twin.weight, twin.bias, True)
    branch = F.max_pool2d(F.batch_norm(z, *norm).relu(), 2)
    pairs = [(torch.einsum("ck,nkhw->nchw", b[0], branch), wide)]
    x = alphas[0] * wide + (1 - alphas[0]) * pairs[0][0]
    z = F.conv2d(x, net[4].weight, net[4].bias, padding=1)
    wide, branch = z.tanh(), torch.einsum("kc,nchw->nkhw", a[1], z).tanh()
    pairs.append((torch.einsum("ck,nkhw->nchw", b[1], branch), wide))
    x = alphas[1] * wide + (1 - alphas[1]) * pairs[1][0]
    return F.linear(x.flatten(1), net[7].weight, net[7].bias), pairs


def gradients(loss: Tensor, blended: bp.Blended) -> list[Tensor]:
    found = torch.autograd.grad(
        loss, list(blended.parameters()), allow_unused=True, retain_graph=True
    )
    pairs = zip(found, blended.parameters(), strict=True)
    return [torch.zeros_like(p) if g is None else g for g, p in pairs]

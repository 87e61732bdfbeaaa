"""Forwards as detectors have them: lists that grow and change, cached anchors, shapes unpacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


class C2f(nn.Module):
    """Keeps halves of its channels in a list that grows, as in YOLOv8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c = width // 2
        self.one, self.two = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.parts = nn.ModuleList(nn.Conv2d(self.c, self.c, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.one(x).chunk(2, 1))
        y.extend(part(y[-1]).relu() for part in self.parts)
        out: Tensor = self.two(torch.cat(y, 1)).relu()
        return out


class Detect(nn.Module):
    """Writes into its list of inputs; makes anchors when the shape is new."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, 6, 1) for c in (16, 32))
        self.anchors, self.shape = torch.empty(0), None

    def forward(self, x: list[Tensor]) -> Any:
        like = x[0]
        for i, head in enumerate(self.heads):
            x[i] = head(x[i])
        if self.training:
            return x
        shape = x[0].shape
        if self.shape != shape:
            grids = [torch.arange(each.shape[3]).type_as(like) for each in x]
            self.anchors, self.shape = torch.cat(grids), shape
        b, _, *sizes = shape
        y = torch.cat([each.view(b, 6, -1) for each in x], 2)
        y[..., 0:2] = y[..., 0:2].sigmoid() * 2 - 0.5
        return y + self.anchors.sum() * sizes[0], x


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.block, self.detect = C2f(16), Detect()

    def forward(self, x: Tensor) -> Any:
        x = self.block(F.silu(self.a(x)))
        return self.detect([x, F.silu(self.b(x))])


def leaves(outputs: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


@pytest.mark.parametrize("opaque", [(), ("detect",)])
@pytest.mark.parametrize("training", [False, True])
def test_a_detector(training: bool, opaque: tuple[str, ...]) -> None:
    model = scramble(Detector().double()).eval()
    plan = bp.plan(model, X, opaque=opaque)
    inner = {"a", "block.one", "block.parts.0", "block.parts.1"}
    wanted = inner if opaque else inner | {"b", "block.two"}
    assert {group.name for group in plan.groups if group.pruned} == wanted
    blended = bp.attach(model, plan).train(training)
    for found, expected in zip(leaves(blended(X)), leaves(model.train(training)(X)), strict=True):
        assert torch.equal(found, expected)
    scramble(blended)
    blended.alpha = 0
    small = bp.collapse(blended).train(training)
    with torch.no_grad():
        expected = leaves(spelled_out(blended).train(training)(X))
        for other in (small, blended):
            for a, b in zip(expected, leaves(other(X)), strict=True):
                assert relative(a, b) < 1e-10


def test_the_wide_path_rests_where_a_tensor_gives_its_type_alone() -> None:
    """At α = 0 each layer runs once, though `type_as` names a tensor that is wide elsewhere."""
    model = scramble(Detector().double()).eval()
    blended = bp.attach(model, bp.plan(model, X))
    blended.alpha = 0
    called: list[str] = []
    for name, layer in blended.model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    blended(X)
    assert len(called) == len(set(called)) > 0

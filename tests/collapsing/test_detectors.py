"""Detectors of torchvision, part by part: backbone, heads, region proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import scramble
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign

import branchprune as bp
from branchprune.collapsing.collapse import collapse_with_error

WIDTH = 64
SIZE = {"min_size": 64, "max_size": 64}


class Backbone(nn.Sequential):
    """Two convolutions and a map of a quarter of the image's height and width."""

    out_channels = WIDTH

    def __init__(self) -> None:
        first, second = (nn.Conv2d(n, WIDTH, 3, stride=2, padding=1) for n in (3, WIDTH))
        super().__init__(first, nn.BatchNorm2d(WIDTH), nn.ReLU(), second)


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((16, 32),), ((0.5, 1.0),))


def retinanet() -> nn.Module:
    return detection.RetinaNet(Backbone(), 3, anchor_generator=anchors(), **SIZE)


def fcos() -> nn.Module:
    one = AnchorGenerator(((8,),), ((1.0,),))
    return detection.FCOS(Backbone(), 3, anchor_generator=one, **SIZE)


class Extractor(Backbone):
    """A backbone that says how wide its maps are, as that of SSD does."""

    out_channels = (WIDTH,)


def ssd() -> nn.Module:
    boxes = DefaultBoxGenerator([[2]], steps=[4])
    return detection.ssd.SSD(Extractor(), boxes, (64, 64), 3)


def pooled(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0"], size, 2)


def mask_rcnn() -> nn.Module:
    return detection.MaskRCNN(
        Backbone(),
        3,
        rpn_anchor_generator=anchors(),
        box_roi_pool=pooled(3),
        box_head=TwoMLPHead(WIDTH * 9, 1024),
        mask_roi_pool=pooled(6),
        mask_head=MaskRCNNHeads(WIDTH, (16, 256), 1),
        **SIZE,
    )


Make = Callable[[], nn.Module]
PARTS: list[tuple[Make, tuple[str, ...]]] = [
    (retinanet, ("backbone", "head.classification_head", "head.regression_head")),
    (fcos, ("backbone", "head")),
    (ssd, ("backbone",)),
    (mask_rcnn, ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head")),
]


def images() -> tuple[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return ([torch.rand(3, 64, 64, generator=generator) for _ in range(2)],)


def losses(model: nn.Module) -> Tensor:
    box, masks = torch.tensor([[10.0, 12.0, 40.0, 44.0]]), torch.ones(1, 64, 64, dtype=torch.uint8)
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": masks}
    found: dict[str, Tensor] = model.train()(*images(), [target, target])
    return torch.stack([*found.values()]).sum()


@pytest.mark.parametrize(("make", "parts"), PARTS, ids=[make.__name__ for make, _ in PARTS])
def test_parts_of_a_detector_are_pruned_one_after_another(
    make: Make, parts: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model: Any = make().eval()
    names = [*model.state_dict()]
    for part in parts:
        plan = bp.plan(model, images(), inside=part)
        blended = bp.attach(model, plan)
        with torch.no_grad():
            expected, found = model(*images()), blended.eval()(*images())
        assert all(
            torch.equal(a[key], b[key]) for a, b in zip(expected, found, strict=True) for key in a
        )
        blended.alpha = 0.5
        losses(blended).backward()
        ends = [*blended.reduce.parameters(), *blended.expand.parameters()]
        assert ends and all(p.grad is not None and p.grad.isfinite().all() for p in ends)
        blended.zero_grad()
        scramble(blended.eval())
        blended.alpha = 0
        small, error = collapse_with_error(blended)
        assert error <= 1e-10
        own = small.get_submodule(part).parameters()
        assert sum(p.numel() for p in own) == plan.after.params < plan.before.params
        model = small.eval()
    assert [*model.state_dict()] == names
    losses(model).backward()

"""A model of each family in torchvision goes through plan, attach and collapse."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from models import relative
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    ResNet,
    SwinTransformer,
    VisionTransformer,
    get_model,
    vgg,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.regnet import AnyStage
from torchvision.models.resnet import Bottleneck
from torchvision.models.video import SwinTransformer3d

import branchprune as bp
from branchprune.collapsing.collapse import collapse_with_error

EXACT = 1e-10
OUTPUT = "it is an output of the model"
SMALL: dict[str, Any] = {"num_classes": 10}
AUXILIARY: dict[str, Any] = {**SMALL, "init_weights": False, "aux_logits": True}
DENSE: dict[str, Any] = {**SMALL, "weights_backbone": None}


@dataclass
class Family:
    """How to build a member, and what to expect of it.

    Args:
        share: At least so much of its MACs is in groups that shrink.
        options: Arguments of the builder.
        shape: Of an input.
        hidden: Fully connected layers of 4096 features, which get 64: they take most of the time.
        deep: Whether to leave two blocks a stage; those behind them are the same and take time.
        frozen: Why the other groups do not shrink, outputs aside.
    """

    share: float = 0.99
    options: dict[str, Any] = field(default_factory=lambda: SMALL)
    shape: tuple[int, ...] = (3, 64, 64)
    hidden: tuple[int, ...] = ()
    deep: bool = False
    frozen: tuple[str, ...] = ()


FAMILIES = {
    "alexnet": Family(hidden=(1, 4)),
    "vgg": Family(hidden=(0, 3), shape=(3, 32, 32)),
    "squeezenet1_1": Family(),
    "resnet18": Family(),
    "resnext": Family(),
    "densenet": Family(),
    "googlenet": Family(options=AUXILIARY),
    "inception_v3": Family(options={**AUXILIARY, "aux_logits": False}, shape=(3, 107, 107)),
    "mobilenet_v2": Family(),
    "mobilenet_v3_small": Family(),
    "mnasnet0_5": Family(),
    "efficientnet_b0": Family(deep=True),
    "efficientnet_v2_s": Family(deep=True),
    "regnet_y_400mf": Family(deep=True),
    "shufflenet_v2_x0_5": Family(),
    "convnext": Family(),
    "deeplabv3_mobilenet_v3_large": Family(options=DENSE),
    "mc3_18": Family(shape=(3, 4, 32, 32)),
    "swin": Family(0.29),
    "swin3d": Family(0.51, shape=(3, 4, 64, 64)),
    "vit": Family(),
}


HEADS: dict[str, Any] = {"depths": [2] * 4, "num_heads": [2, 4, 8, 16], "embed_dim": 48}
NARROW: dict[str, Any] = {
    "convnext": lambda: ConvNeXt(
        [CNBlockConfig(24 * 2**i, 48 * 2**i if i < 3 else None, 2) for i in range(4)],
        stochastic_depth_prob=0.1,
        **SMALL,
    ),
    "densenet": lambda: DenseNet(block_config=(3, 3, 3, 3), **SMALL),
    "resnext": lambda: ResNet(Bottleneck, [2, 2, 1, 1], groups=8, width_per_group=4, **SMALL),
    "swin3d": lambda: SwinTransformer3d([2, 4, 4], window_size=[8, 7, 7], **HEADS, **SMALL),
    "swin": lambda: SwinTransformer([4, 4], window_size=[7, 7], **HEADS, **SMALL),
    "vgg": lambda: vgg.VGG(
        vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 512, "M"], True),
        **SMALL,
    ),
    "vit": lambda: VisionTransformer(64, 32, 2, 4, 128, 512, **SMALL),
}
"""Families whose known members take long, by one with fewer blocks and channels."""


def built(name: str, family: Family) -> nn.Module:
    model = NARROW[name]() if name in NARROW else get_model(name, weights=None, **family.options)
    sizes = [model.classifier[i].in_features for i in family.hidden[:1]] + [64, 64]
    for stage in stages(model) if family.deep else ():
        del stage[2:]
    for i, inputs in zip((*family.hidden, 6), sizes, strict=False):
        if family.hidden:
            model.classifier[i] = nn.Linear(inputs, 10 if i == 6 else 64)
    return scramble_norms(model)


def stages(model: nn.Module) -> list[nn.Sequential]:
    """Return the sequences of blocks; a convolution with its norm is one of another class."""
    within = getattr(model, "features", getattr(model, "trunk_output", model))
    return [stage for stage in within.children() if type(stage) in (nn.Sequential, AnyStage)]


def scramble_norms(model: nn.Module) -> nn.Module:
    """Give norms, biases and layer scales numbers that are not 0, 1 or 1e-6."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if last == "running_mean":
                tensor.copy_(0.1 * noise(tensor))
            elif last == "running_var":
                tensor.copy_((0.2 * noise(tensor)).exp())
            elif last == "layer_scale":
                tensor.copy_(0.5 + 0.1 * noise(tensor))
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * noise(tensor))
    return model


def leaves(model: nn.Module, x: Any, training: bool) -> list[Tensor]:
    """Return all outputs; every call draws the same and leaves the statistics as they are."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(3)
    with torch.no_grad():
        found = model.train(training)(*x)
        for name, buffer in model.named_buffers():
            buffer.copy_(state[name])
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def perturb(blended: bp.Blended) -> None:
    """Let no end be a mere selection, nor a twin be a mere part of the wide layer."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in (blended.reduce, blended.expand, blended.twin):
            for weight in part.parameters():
                size = float(weight.square().mean().sqrt())
                weight.add_(0.1 * size * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    family = FAMILIES[name]
    model = built(name, family)
    x = torch.randn(2, *family.shape)
    plan = bp.plan(model, x[:1])
    assert sum(group.macs_share for group in plan.groups if group.pruned) >= family.share
    reasons = {group.reason for group in plan.groups if not group.pruned} - {OUTPUT}
    assert reasons == set(family.frozen)
    blended = bp.attach(model, plan)
    for training in (False, True):
        expected, found = (leaves(net, (x,), training) for net in (model, blended))
        assert len(expected) == len(found) > 0
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    perturb(blended)
    blended.alpha = 0
    small, error = collapse_with_error(blended)
    assert error <= EXACT
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert plan.after.params < plan.before.params
    shapes = [y.shape for y in leaves(small, (x,), True)]
    assert shapes == [y.shape for y in expected]


SIDES = (96, 128)


def detector() -> nn.Module:
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    model = scramble_norms(model)
    model.score_thresh, model.detections_per_img = 0.0, 20
    return model


def images(count: int = 2) -> list[Tensor]:
    return [torch.rand(3, *SIDES, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def detected(model: nn.Module) -> list[Tensor]:
    """Return boxes, scores and labels in two images."""
    with torch.no_grad():
        return tree_leaves(model.eval()(images()))


def losses(model: nn.Module) -> Tensor:
    """Return the sum of what a detector computes for training."""
    box = torch.tensor([[10.0, 20.0, 60.0, 80.0]])
    targets = [{"boxes": box, "labels": torch.tensor([i + 1])} for i in range(2)]
    torch.manual_seed(5)
    return torch.stack(list(model.train()(images(), targets).values())).sum()


def test_detector(tmp_path: Path) -> None:
    """A detector cannot be traced as a whole; its backbone is pruned where it stands."""
    model = detector()
    plan = bp.plan(model, (images(1),), inside="backbone")
    assert sum(group.macs_share for group in plan.groups if group.pruned) >= 0.85
    assert {group.reason for group in plan.groups if not group.pruned} == {OUTPUT}
    blended = bp.attach(model, plan)
    expected, found = detected(model), detected(blended)
    assert len(expected) == 6 and len(expected[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(losses(copy.deepcopy(model)), losses(copy.deepcopy(blended)))
    perturb(blended)
    for alpha in (0.5, 0.0):
        blended.alpha = alpha
        blended.zero_grad()
        losses(blended).backward()
        heads = [p for name, p in blended.model.named_parameters() if "head" in name]
        for parameter in (*blended.reduce.parameters(), *blended.expand.parameters(), *heads):
            assert parameter.grad is not None and parameter.grad.isfinite().all()
    with torch.no_grad():
        for parameter in blended.parameters():
            parameter -= 1e-3 * parameter.grad if parameter.grad is not None else 0
    small, error = collapse_with_error(blended)
    assert error <= EXACT
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(
            tree_leaves(blended.eval().part(inputs)),
            tree_leaves(small.eval().backbone(inputs)),
            strict=True,
        )
        assert all(relative(a, b) < 1e-4 for a, b in pairs)
    losses(copy.deepcopy(small)).backward()
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(detector(), tmp_path / "small.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(detected(small), detected(loaded), strict=True))

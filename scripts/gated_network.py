"""A ResNet whose convolutions compute those channels alone that each image asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchprune.graph.inputs import copied
from branchprune.models.resnet import BasicBlock


class GatedConv(nn.Module):
    """A convolution with its norm, of which each image computes the channels of largest gates.

    A gate is `relu(W s + b)`, s the mean of |x| over each map that is read; all but the largest are
    0, and what is computed is multiplied by them (feature boosting and suppression, Gao et al.,
    "Dynamic channel pruning", 2019). There a gate stands in place of the scale of the norm, and a
    penalty on the sum of the gates is learned with; here it stands beside the scale, so that it can
    begin at 1, from a trained network, and there is no penalty.

    Args:
        conv: The convolution, without groups and bias.
        norm: The BatchNorm behind it.
        share: Share of the channels that an image computes.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, share: float) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.kept = max(1, round(share * conv.out_channels))
        self.predictor = nn.Linear(conv.in_channels, conv.out_channels)
        nn.init.ones_(self.predictor.bias)
        self.skips = False

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, C, H, W), 0 where a gate is; one image is computed as it asks."""
        gates = F.relu(self.predictor(x.abs().mean((2, 3))))
        largest = gates.topk(self.kept, 1).indices
        if self.skips and len(x) == 1:
            return self._chosen(x, gates[0], largest[0])
        gates = torch.zeros_like(gates).scatter(1, largest, gates.gather(1, largest))
        found: Tensor = self.norm(self.conv(x)) * gates[:, :, None, None]
        return found

    def _chosen(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Return the features of an image, of which only some channels are computed."""
        weight = self.conv.weight[chosen]
        live = x[0].flatten(1).any(1).nonzero()[:, 0]
        if len(live) < x.shape[1]:
            x, weight = x[:, live], weight[:, live]
        y = F.conv2d(x, weight, None, self.conv.stride, self.conv.padding)
        norm = self.norm
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight[chosen] * (norm.running_var[chosen] + norm.eps).rsqrt()
        shift = norm.bias[chosen] - norm.running_mean[chosen] * scale
        y = (y * scale[:, None, None] + shift[:, None, None]) * gates[chosen, None, None]
        out = y.new_zeros(1, self.conv.out_channels, *y.shape[2:])
        out[:, chosen] = y
        return out


def gated(model: nn.Module, share: float) -> nn.Module:
    """Return a copy of a ResNet of branchprune.models with gates in its blocks.

    Args:
        model: The network.
        share: Share of the channels that each image computes, of both convolutions of a block; the
            sum with the shortcut has all.
    """
    found = copied(model)
    for block in [each for each in found.modules() if isinstance(each, BasicBlock)]:
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            made = GatedConv(getattr(block, conv), getattr(block, norm), share)
            setattr(block, conv, made)
            setattr(block, norm, nn.Identity())
    return found


def macs_with_gates(macs: Mapping[str, float], model: nn.Module) -> float:
    """Return the multiply-adds that an image needs where gates are 0, with those of the predictors.

    Args:
        macs: Multiply-adds of each layer without gates, by the path it has there.
        model: The network with gates.
    """
    needed = dict(macs)
    for name, block in model.named_modules():
        if not isinstance(block, BasicBlock):
            continue
        read = 1.0
        for conv in ("conv1", "conv2"):
            part = block.get_submodule(conv)
            assert isinstance(part, GatedConv)
            computed = part.kept / part.conv.out_channels
            needed[f"{name}.{conv}"] *= read * computed
            needed[f"{name}.{conv}.predictor"] = part.predictor.weight.numel()
            read = computed
    return sum(needed.values())

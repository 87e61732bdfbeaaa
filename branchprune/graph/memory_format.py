"""The order of channels in memory: a CPU computes faster where they come last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.inputs import call, copied, tensors, training_mode

SAME = 1e-6
"""Relative squared error of outputs up to which a model computes the same in either order."""


def put_channels_last(models: list[nn.Module], images: Tensor) -> bool:
    """Order the weights of models for channels that come last in memory, if all of them take it.

    Images (N, C, H, W) on a CPU are meant. A forward that takes the order for granted, by `view` or
    `as_strided`, fails or computes something else; then the weights stay as they are.

    Args:
        models: Models of the same images; in evaluation mode they are tried out.
        images: Some images.

    Returns:
        Whether their weights have the order now.
    """
    if images.dim() != 4 or images.device.type != "cpu":
        return False
    if not all(_takes(model, images[:2]) for model in models):
        return False
    for model in models:
        model.to(memory_format=torch.channels_last)
    return True


def _takes(model: nn.Module, images: Tensor) -> bool:
    with torch.no_grad(), training_mode(model, False):
        wanted = _floats(call(model, images))
    try:
        other = copied(model).to(memory_format=torch.channels_last)
        with torch.no_grad(), training_mode(other, False):
            found = _floats(call(other, images))
    except Exception:  # of whatever kind a forward of users raises
        return False
    return float((found - wanted).square().sum()) <= SAME * float(wanted.square().sum())


def _floats(outputs: Any) -> Tensor:
    """Return all outputs that are floats, in a row."""
    found = [each.flatten().float() for each in tensors(outputs) if each.is_floating_point()]
    return torch.cat(found) if found else torch.zeros(0)

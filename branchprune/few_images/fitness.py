"""Do images look like those a model was trained with? What its norms remember, what it says."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from branchprune.graph.inputs import training_mode
from branchprune.graph.outputs import are_logits, floats

FAR = 1.0
"""Root mean square over channels of how far a mean is off, in standard deviations."""
SPREAD = 2.0
"""How many times as large, or as small, standard deviations are: the median over channels."""
UNSURE = 1.5
"""Mean of the largest probability, in multiples of chance."""


def warn_if_strange(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Warn if images seem not to be normalised as a model wants them, or are no images of its kind.

    Args:
        model: The dense model.
        images: Some images (N, …), on its device.

    Returns:
        The warnings.
    """
    first = next((each for each in model.named_modules() if _remembers(each[1])), None)
    read: list[Tensor] = []
    hook = first and first[1].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        with torch.no_grad(), training_mode(model, False):
            outputs = model(images)
    finally:
        if hook:
            hook.remove()
    said = [_if_off(first[0], first[1], read[0])] if first and read else []
    found = tuple(each for each in [*said, _if_unsure(outputs)] if each)
    for each in found:
        warnings.warn(each, stacklevel=3)
    return found


def _if_off(name: str, norm: Any, x: Tensor) -> str:
    off, spread = _off(norm, x), _spread(norm, x)
    if off > FAR:
        how = f"its inputs are off by {off:.1f} standard deviations"
    elif not 1 / SPREAD <= spread <= SPREAD:
        how = f"its inputs vary {spread:.2g} times as much"
    else:
        return ""
    return f"images are not what {name} has seen: {how}; normalise them as in the model's training"


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _off(norm: Any, x: Tensor) -> float:
    mean = x.transpose(0, 1).flatten(1).mean(1)
    scale = (norm.running_var + norm.eps).sqrt()
    return float(((mean - norm.running_mean) / scale).square().mean().sqrt())


def _spread(norm: Any, x: Tensor) -> float:
    """Return how many times as much inputs vary as in training; 1 if a norm has seen none."""
    if not norm.running_mean.any() and bool((norm.running_var == 1).all()):
        return 1.0
    found = x.transpose(0, 1).flatten(1).var(1)
    return float(((found + norm.eps) / (norm.running_var + norm.eps)).sqrt().median())


def _if_unsure(outputs: Any) -> str:
    scores = floats(outputs)
    if len(scores) != 1 or not are_logits(outputs) or scores[0].shape[1] < 2:
        return ""
    chance = 1 / scores[0].shape[1]
    rows = scores[0].float()
    shares = bool((rows >= 0).all()) and torch.allclose(
        rows.sum(1), torch.ones(()).to(rows), atol=1e-3
    )
    sure = float((rows if shares else rows.softmax(1)).amax(1).mean())
    if sure >= UNSURE * chance:
        return ""
    return (
        f"images: the model gives its best class a probability of {sure:.2%} on average, at "
        f"chance it would be {chance:.2%}: if its outputs are classes, is it trained, and are "
        "images normalised as in its training?"
    )

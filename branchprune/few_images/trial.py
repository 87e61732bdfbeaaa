"""A trial on two images: what cannot work is told before channels are chosen and fitted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError, first_line
from branchprune.few_images.images import Transform
from branchprune.few_images.matching import Distance
from branchprune.graph.inputs import training_mode
from branchprune.graph.outputs import floats

COARSE = (torch.float16, torch.bfloat16)


def check_weights(model: nn.Module) -> None:
    """Raise PruneError for weights in which small steps are lost."""
    for name, weight in model.named_parameters():
        if weight.dtype in COARSE:
            raise PruneError(
                f"model: {name} is of {weight.dtype}, in which nothing can be learnt: give "
                "model.float(), and turn the small model back"
            )


def try_out(
    model: nn.Module, images: Tensor, transform: Transform | None, distance: Distance | None
) -> None:
    """Make a view of two images, let the model see it, and compare its outputs with themselves.

    Args:
        model: The dense model, with frozen weights.
        images: What to learn from (N, …), N at least 1.
        transform: See `compress`.
        distance: See `compress`.

    Raises:
        PruneError: The view, the outputs or the distance cannot be used.
    """
    view = images[:2].repeat(2 // len(images[:2]), *[1] * (images.dim() - 1))
    if transform is not None:
        view = _transformed(model, view, transform)
    x = view.clone().requires_grad_()
    with training_mode(model, False):
        outputs = model(x.clone())
    _check_outputs(outputs)
    if distance is not None:
        _check_distance(distance(outputs, _without_gradients(model, view)))


def _transformed(model: nn.Module, images: Tensor, transform: Transform) -> Tensor:
    found: Any = transform(images.clone())
    if not isinstance(found, Tensor):
        raise PruneError(f"transform returned a {type(found).__name__}, not a tensor of images")
    if found.dtype != images.dtype or found.device != images.device:
        raise PruneError(
            f"transform returned images of {found.dtype} on {found.device}, of those of "
            f"{images.dtype} on {images.device}"
        )
    try:
        _without_gradients(model, found)
    except Exception as error:
        raise PruneError(
            f"transform made {tuple(found.shape)} of {tuple(images.shape)}, which the model does "
            f"not take: {first_line(error)}"
        ) from error
    return found


def _without_gradients(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad(), training_mode(model, False):
        return model(images.clone())


def _check_outputs(outputs: Any) -> None:
    seen = floats(outputs)
    if not seen:
        raise PruneError(
            f"model returns a {type(outputs).__name__} in which there is no tensor of floats to "
            "match: leave out what comes behind the last floats, such as an argmax"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in seen):
        raise PruneError("model returns NaN or infinity for the images: are its weights right?")


def _check_distance(found: object) -> None:
    if not isinstance(found, Tensor) or found.numel() != 1:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PruneError(f"distance returned a {kind}: it must be a tensor of one number")
    if not found.requires_grad:
        raise PruneError(
            "distance returned a number that has no gradient: compute it of its first argument, "
            "by operations of torch"
        )

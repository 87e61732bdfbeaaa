"""The models of the coverage table: which there are, how to build one, how large its input is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from branchprune.errors import optional


def torchvision_families() -> dict[str, str]:
    """Return every model of an image or a clip, but no detector, with the module it is from."""
    modules = (models, models.segmentation, models.video)
    names = [name for module in modules for name in models.list_models(module=module)]
    return {name: models.get_model_builder(name).__module__.split(".")[2] for name in names}


def torchvision_model(name: str, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    builder, weights = models.get_model_builder(name), models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    crop = getattr(transforms, "crop_size", None) or transforms.resize_size
    size = (image_size, image_size) if image_size else (crop[0], crop[-1])
    frames = max(16, weights.meta.get("min_temporal_size", 0))
    clip = (frames,) if ".video." in builder.__module__ else ()
    parameters = inspect.signature(builder).parameters
    options = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    return _sized(builder, "image_size", size[0], **options), (3, *clip, *size)


def timm_families() -> dict[str, str]:
    """Return every model of timm with the module it is from."""
    timm = optional("timm", "library (='timm')")
    found = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}
    return {name: entry.__module__.split(".")[2] for name, entry in found.items()}


def timm_model(name: str, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    timm = optional("timm", "library (='timm')")
    model = _sized(timm.create_model, "img_size", image_size, model_name=name)
    channels, *size = model.default_cfg["input_size"]
    return model, (channels, *([image_size] * 2 if image_size else size))


def _sized(builder: Callable[..., Any], key: str, size: int | None, **options: Any) -> Any:
    """Build a model for a size of images, if it is one that has to know it."""
    try:
        return builder(**options, **({key: size} if size else {}))
    except TypeError:
        return builder(**options)


LIBRARIES = {
    "torchvision": (torchvision_families, torchvision_model),
    "timm": (timm_families, timm_model),
}

"""The models of the coverage table: which there are, how to build one, how large its input is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchvision import models  # type: ignore[import-untyped]

from branchprune.errors import optional
from branchprune.graph.inputs import training_mode
from branchprune.planning.profiling import count_params

SEGMENTATION = "segmentation_models_pytorch"
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
OF_TRANSFORMERS = (
    "tu-vit_tiny_patch16_224",
    "tu-deit_tiny_patch16_224",
    "tu-beit_base_patch16_224",
)
"""Encoders of DPT, which takes no others; their images have one size."""
TASKS = ("-seg", "-pose", "-obb", "-cls")
YOLO = {
    **dict.fromkeys(("yolov3-tiny", "yolov5n", "yolov6n", "yolov9t", "yolov10n"), ()),
    **dict.fromkeys(("yolov8n", "yolo11n", "yolo12n", "yolo26n"), TASKS),
}
"""The smallest model of each version, and the tasks beside detection that it has one for."""
Builder = Callable[..., tuple[nn.Module, tuple[int, ...]]]
"""Returns a model by its name, and the shape of one example, at a size of images; those of
torchvision and timm take arguments of the model, too."""
WITH_ARGUMENTS = ("torchvision", "timm")


def torchvision_families() -> dict[str, str]:
    """Return every model of an image or a clip, but no detector, with the module it is from."""
    modules = (models, models.segmentation, models.video)
    names = [name for module in modules for name in models.list_models(module=module)]
    return {name: models.get_model_builder(name).__module__.split(".")[2] for name in names}


def torchvision_model(
    name: str, image_size: int | None, **arguments: Any
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    image_size = arguments.pop("image_size", image_size)
    builder, weights = models.get_model_builder(name), models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    crop = getattr(transforms, "crop_size", None) or transforms.resize_size
    size = (image_size, image_size) if image_size else (crop[0], crop[-1])
    frames = max(16, weights.meta.get("min_temporal_size", 0))
    clip = (frames,) if ".video." in builder.__module__ else ()
    parameters = inspect.signature(builder).parameters
    options = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    return _sized(builder, "image_size", size[0], **options, **arguments), (3, *clip, *size)


def timm_families() -> dict[str, str]:
    """Return every model of timm with the module it is from."""
    timm = optional("timm", "library (='timm')")
    found = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}
    families = {name: entry.__module__.split(".")[2] for name, entry in found.items()}
    return {name: family for name, family in families.items() if not name.startswith("test_")}


def timm_model(
    name: str, image_size: int | None, **arguments: Any
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    timm = optional("timm", "library (='timm')")
    image_size = arguments.pop("img_size", image_size)
    model = _sized(timm.create_model, "img_size", image_size, model_name=name, **arguments)
    channels, *size = model.default_cfg["input_size"]
    channels = arguments.get("in_chans", channels)
    shape = (channels, *([image_size] * 2 if image_size else size))
    if image_size and not _accepts(model, shape):
        return timm_model(name, None, **arguments)
    return model, shape


def _accepts(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a model takes images of a size; windows and patches may have to fit."""
    try:
        with torch.no_grad(), training_mode(model, False):
            model(torch.zeros(1, *shape))
    except Exception:  # whatever a model says to that
        return False
    return True


def _sized(builder: Callable[..., Any], key: str, size: int | None, **options: Any) -> Any:
    """Build a model for a size of images, if it is one that has to know it."""
    try:
        return builder(**options, **({key: size} if size else {}))
    except TypeError:
        return builder(**options)


def segmentation_families() -> dict[str, str]:
    """Return each decoder of segmentation_models_pytorch with a small encoder of each kind."""
    smp = optional(SEGMENTATION, f"library (='{SEGMENTATION}')")
    decoders = [name for name, kind in vars(smp).items() if isinstance(kind, type)]
    return {f"{n}/{e}": n for n in sorted(decoders) for e in _encoders(n)}


def _encoders(decoder: str) -> tuple[str, ...]:
    return OF_TRANSFORMERS if decoder == "DPT" else ENCODERS


def segmentation_model(name: str, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    smp = optional(SEGMENTATION, f"library (='{SEGMENTATION}')")
    decoder, _, encoder = name.partition("/")
    model = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3)
    size = 224 if decoder == "DPT" else image_size or 256
    return model, (3, size, size)


def ultralytics_families() -> dict[str, str]:
    """Return the smallest YOLO of each version, and those of its tasks, with the version."""
    optional("ultralytics", "library (='ultralytics')")
    return {f"{name}{task}": name for name, tasks in YOLO.items() for task in ("", *tasks)}


def ultralytics_model(name: str, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with random weights, and the shape of one example."""
    ultralytics = optional("ultralytics", "library (='ultralytics')")
    return ultralytics.YOLO(f"{name}.yaml").model, (3, *[image_size or 640] * 2)


def smallest(families: Mapping[str, str], build: Builder) -> dict[str, str]:
    """Return the model with the fewest parameters of each family, and of each first word in it.

    Args:
        families: The family of each model.
        build: Returns a model; it is built without numbers.
    """
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for name, family in families.items():
        try:
            with torch.device("meta"):
                size = count_params(build(name, None)[0])
        except Exception:
            continue
        key = (family, re.split(r"[^a-z]", name)[0])
        found[key] = min(found.get(key, (size, name)), (size, name))
    return {name: families[name] for _, name in sorted(found.values())}


LIBRARIES: dict[str, tuple[Callable[[], dict[str, str]], Builder]] = {
    "torchvision": (torchvision_families, torchvision_model),
    "timm": (timm_families, timm_model),
    SEGMENTATION: (segmentation_families, segmentation_model),
    "ultralytics": (ultralytics_families, ultralytics_model),
}
"""For each library its models with their families, and what builds one."""

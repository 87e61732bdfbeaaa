"""Models that a library makes by itself, of a name, sizes and switches: no file can abuse them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from branchprune import models
from branchprune.artifacts.origin import Origin
from branchprune.errors import PruneError, optional

BUILDER = re.compile(r"torchvision\.models(?:\.segmentation|\.video)?[.:](\w+)")
TIMM = ("timm.create_model", "timm:create_model")
WEIGHTS = re.compile("pretrained|weights|checkpoint")
"""How arguments begin that ask for weights from elsewhere."""


def is_of_library(origin: Origin) -> bool:
    """Return whether a model is made by the code of a library alone, from sizes and switches."""
    name, init_args = origin.made_by, dict(origin.init_args)
    module, _, own = name.replace(":", ".").rpartition(".")
    if module == models.__name__:
        return own in models.__all__ and _is_plain(init_args)
    builder = BUILDER.fullmatch(name)
    if builder:
        return builder[1] in _builders() and _is_plain(init_args)
    if name in TIMM:
        given = init_args.pop("model_name", None)
        known = isinstance(given, str) and given.partition(".")[0] in _timm(name).list_models()
        return known and re.fullmatch(r"[\w.]+", given) is not None and _is_plain(init_args)
    return is_name(name) and _is_plain(init_args)


def is_name(made_by: str) -> bool:
    """Return whether what makes a model is a name, `resnet18` or `timm/NAME`; else: a path."""
    return not re.search("[.:]", made_by.partition("/")[0])


def model_of_library(origin: Origin) -> nn.Module:
    """Return a model for which `is_of_library` holds, with random weights.

    By a name its images are of the size that `branchprune plan` takes, where it has to know one.

    Args:
        origin: What makes it.

    Raises:
        PruneError: The name is of no library that is known here, or a package is missing.
        Exception: Whatever the library raises for arguments that are wrong.
    """
    init_args = origin.init_args
    if builder := BUILDER.fullmatch(origin.made_by):
        return _without_weights(_builders()[builder[1]], init_args)
    if not is_name(origin.made_by):
        own = origin.made_by.replace(":", ".").rpartition(".")[2]
        of = _timm(origin.made_by).create_model if origin.made_by in TIMM else getattr(models, own)
        made: nn.Module = of(**init_args)
        return made
    library, name = "torchvision", origin.made_by
    if "/" in name:
        library, _, name = name.partition("/")
    if library == "torchvision" and name in _builders():
        return _of_torchvision(name, init_args)
    if library == "timm" and name in (timm := _timm(origin.made_by)).list_models():
        found: nn.Module = timm.create_model(name, **init_args)
        return found
    known = library in ("torchvision", "timm")
    which = f"no model of {library} here" if known else f"of {library}, of which none is made here"
    raise PruneError(f"made_by (={origin.made_by!r}) is {which}")


def _of_torchvision(name: str, init_args: Mapping[str, Any]) -> nn.Module:
    from torchvision.models import get_model_weights  # type: ignore[import-untyped]

    builder, transforms = _builders()[name], get_model_weights(name).DEFAULT.transforms()
    crop = getattr(transforms, "crop_size", None) or transforms.resize_size
    try:
        return _without_weights(builder, {"image_size": crop[0]} | {**init_args})
    except TypeError:  # most take images of any size
        return _without_weights(builder, init_args)


def _without_weights(builder: Callable[..., nn.Module], init_args: Mapping[str, Any]) -> nn.Module:
    """Call what makes a model of torchvision so that it downloads none, of a backbone neither."""
    taken = inspect.signature(builder).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in taken}
    return builder(**none | {**init_args})


def _builders() -> dict[str, Callable[..., nn.Module]]:
    """Return what makes each model of an image or a clip in torchvision, but no detector."""
    found = optional("torchvision", "a model by its name").models
    modules = (found, found.segmentation, found.video)
    names = [name for module in modules for name in found.list_models(module=module)]
    return {name: found.get_model_builder(name) for name in names}


def _timm(name: str) -> Any:
    return optional("timm", f"model (={name!r})")


def _is_plain(init_args: dict[str, Any]) -> bool:
    """Return whether arguments are numbers, and none asks for weights from elsewhere."""
    return all(
        _are_numbers(value) and not (value and WEIGHTS.match(key))
        for key, value in init_args.items()
    )


def _are_numbers(value: Any) -> bool:
    """Return whether a value is a number or switch, None, or a list of them."""
    if isinstance(value, list):
        return all(map(_are_numbers, value))
    return value is None or isinstance(value, int | float)

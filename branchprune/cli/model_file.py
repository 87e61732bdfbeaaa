"""Files that are given as a model: what was made of what, and what is refused to be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from branchprune import models
from branchprune.artifacts.origin import Origin, read_origin
from branchprune.artifacts.torch_checkpoint import not_weights
from branchprune.errors import PruneError, optional

SAVED = ".safetensors"
OF_TORCH = (".pt", ".pth", ".ckpt", ".pt2")
OTHERS = (".yaml", ".yml", ".onnx")
BUILDER = re.compile(r"torchvision\.models(?:\.segmentation|\.video)?[.:](\w+)")


def is_file(name: str) -> bool:
    """Return whether a model that is named so is a file."""
    return Path(name).suffix in (SAVED, *OF_TORCH, *OTHERS)


def origin_of(path: Path) -> Origin:
    """Return what makes the wide model of a file, if that is a model of a library.

    An import path in a file would run what its author chose, so it is not followed.

    Args:
        path: The file that a user gave as a model.

    Raises:
        PruneError: Nothing is made of the file by itself; it says what to write instead.
    """
    if path.suffix != SAVED:
        raise PruneError(_no_model(path))
    origin = read_origin(path)
    if origin is None:
        raise PruneError(
            f"model (={str(path)!r}) does not say what makes its model: name that, and give "
            f"--checkpoint {shlex.quote(str(path))}"
        )
    if not _is_of_library(origin):
        raise PruneError(
            f"model (={str(path)!r}) was made by {origin.made_by}, which could run anything: where "
            f"you trust that, give {command(origin)} --checkpoint {shlex.quote(str(path))} instead"
        )
    return origin


def command(origin: Origin) -> str:
    """Return what to write in place of a file that says what it was made of."""
    given = f" --init_args {shlex.quote(json.dumps(origin.init_args))}" if origin.init_args else ""
    return origin.made_by + given


def _no_model(path: Path) -> str:
    if path.is_file() and path.suffix in OF_TORCH:
        found = not_weights(path)
        if found is not None:
            return f"model (={str(path)!r}) is a file that holds {found}"
        return (
            f"model (={str(path)!r}) is a file of weights: name the model that they belong to, and "
            f"give --checkpoint {shlex.quote(str(path))}"
        )
    return (
        f"model (={str(path)!r}) is a file, and a model is named: a YOLO as ultralytics/yolov8n, "
        "your own by the import path of its class or of a function that loads it, such as "
        "package.module:load"
    )


def _is_of_library(origin: Origin) -> bool:
    """Return whether a model is made by the code of a library alone, from sizes and switches."""
    name, init_args = origin.made_by, dict(origin.init_args)
    module, _, own = name.replace(":", ".").rpartition(".")
    if module == models.__name__:
        return own in models.__all__ and _is_plain(init_args)
    builder = BUILDER.fullmatch(name)
    if builder:
        from branchprune.benchmarks.zoo_models import torchvision_families  # imports torchvision

        return builder[1] in torchvision_families() and _is_plain(init_args)
    if name in ("timm.create_model", "timm:create_model"):
        timm = optional("timm", f"model (={name!r})")
        given = init_args.pop("model_name", None)
        known = isinstance(given, str) and given.partition(".")[0] in timm.list_models()
        return known and re.fullmatch(r"[\w.]+", given) is not None and _is_plain(init_args)
    return not init_args and not re.search("[.:]", name.partition("/")[0])


def _is_plain(init_args: dict[str, Any]) -> bool:
    """Return whether arguments are numbers, and none asks for weights from elsewhere."""
    return all(
        _are_numbers(value) and not (value and re.match("pretrained|weights|checkpoint", key))
        for key, value in init_args.items()
    )


def _are_numbers(value: Any) -> bool:
    """Return whether a value is a number or switch, None, or a list of them."""
    if isinstance(value, list):
        return all(map(_are_numbers, value))
    return value is None or isinstance(value, int | float)

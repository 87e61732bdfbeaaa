"""Files that are given as a model: what was made of what, and what is refused to be run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from branchprune.artifacts.library_models import is_of_library
from branchprune.artifacts.origin import Origin, read_origin
from branchprune.artifacts.torch_checkpoint import not_weights
from branchprune.errors import PruneError

SAVED = ".safetensors"
OF_TORCH = (".pt", ".pth", ".ckpt", ".pt2")
OTHERS = (".yaml", ".yml", ".onnx")


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
    if not is_of_library(origin):
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

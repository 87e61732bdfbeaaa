"""The header of a file of `save`: what the model is, and what is known of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping

import torch
from torch import nn

from branchprune.artifacts import checksum
from branchprune.artifacts.facts import Facts
from branchprune.artifacts.same_model import class_name, settings
from branchprune.artifacts.saved_file import FORMAT
from branchprune.graph.full_shapes import full_shapes
from branchprune.graph.layers import sizes
from branchprune.graph.saved_numbers import followed_numbers, kept_numbers
from branchprune.graph.shortcut import params_left_out, shortcuts
from branchprune.version import __version__

IMPORT_PATH, VERSIONS, BUFFERS, DIGEST = "import_path", "versions", "buffers", "sha256"
PARAMS, DENSE_PARAMS = "params", "dense_params"
LIBRARIES = ("torchvision", "timm", "segmentation_models_pytorch", "ultralytics")


def header_of(model: nn.Module, facts: Facts, digest: str) -> dict[str, str]:
    """Return the header of a file: texts, and JSON.

    Args:
        model: A dense or collapsed model.
        facts: What is known of it.
        digest: That of its weights.
    """
    widths = {name: sizes(module) for name, module in model.named_modules() if sizes(module)}
    full = full_shapes(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    header = {
        "format": FORMAT,
        "class": class_name(model),
        IMPORT_PATH: import_path(model),
        VERSIONS: json.dumps(versions(model)),
        DIGEST: digest,
        "widths": json.dumps(widths),
        "numbers": json.dumps(kept_numbers(model)),
        "followed": json.dumps(followed_numbers(model)),
        "settings": json.dumps(settings(model)),
        BUFFERS: json.dumps([name for name in model.state_dict() if name not in parameters]),
        checksum.KEY: checksum.EMPTY,
    }
    whole = {} if full is None else {"full": json.dumps(full)}
    left_out = shortcuts(model)
    if left_out:
        whole["shortcuts"] = json.dumps(left_out)
    return header | params_of(model) | facts.as_fields() | whole


def params_of(model: nn.Module) -> dict[str, str]:
    """Return fields with the number of a model's parameters, and of the dense one's, if known."""
    named, full = dict(model.named_parameters()), full_shapes(model)
    shapes = {name: tuple(each.shape) for name, each in named.items()}
    found = {PARAMS: str(sum(map(math.prod, shapes.values())))}
    left_out = params_left_out(model)
    if full is not None or left_out:
        wide = [math.prod(shape) for name, shape in (full or shapes).items() if name in named]
        found[DENSE_PARAMS] = str(sum(wide) + left_out)
    return found


def import_path(model: nn.Module) -> str:
    """Return where the class of a model is defined, as module:Class."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def versions(model: nn.Module) -> Mapping[str, str]:
    """Return the versions of branchprune, torch, and the libraries whose classes are in a model."""
    used = {type(module).__module__.partition(".")[0] for module in model.modules()}
    found = {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in LIBRARIES
        if name in used
    }
    known = {name: str(version) for name, version in found.items() if version is not None}
    return {"branchprune": __version__, "torch": str(torch.__version__)} | known

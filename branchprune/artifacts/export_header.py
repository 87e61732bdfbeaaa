"""What an exported file says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from branchprune.artifacts.origin import origin_fields
from branchprune.artifacts.same_model import class_name
from branchprune.graph.full_shapes import full_shapes
from branchprune.graph.layers import sizes
from branchprune.version import __version__

FORMAT = "branchprune-export/1"


def export_header(
    model: nn.Module, made_by: str | None, init_args: Mapping[str, Any]
) -> dict[str, str]:
    """Return the header of an exported file.

    It has the class of the model, the widths of its layers as JSON, the number of its parameters
    and of those of the dense model that it comes from, as far as that is known, the versions of
    branchprune and torch, and what makes the wide model, if that is said.

    Args:
        model: The model.
        made_by: See `bp.save`.
        init_args: See `bp.save`.

    Raises:
        PruneError: `made_by` is no name, or JSON cannot hold `init_args`.
    """
    widths = {name: sizes(module) for name, module in model.named_modules() if sizes(module)}
    named = dict(model.named_parameters())
    header = {
        "format": FORMAT,
        "class": class_name(model),
        "widths": json.dumps(widths),
        "params": str(sum(each.numel() for each in named.values())),
        "branchprune": __version__,
        "torch": str(torch.__version__),
    }
    full = full_shapes(model)
    if full is not None:
        dense = [math.prod(shape) for name, shape in full.items() if name in named]
        header["dense_params"] = str(sum(dense))
    return header | origin_fields(made_by, init_args)

"""What an exported file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from branchprune.artifacts.digest import model_digest
from branchprune.artifacts.facts import Facts, remembered
from branchprune.artifacts.header import DIGEST, params_of
from branchprune.artifacts.origin import checked_origin
from branchprune.artifacts.same_model import class_name
from branchprune.graph.layers import sizes
from branchprune.version import __version__

FORMAT = "branchprune-export/1"


def export_header(
    model: nn.Module, made_by: str | None, init_args: Mapping[str, Any]
) -> dict[str, str]:
    """Return the header of an exported file.

    It has the class of the model, the widths of its layers as JSON, the number of its parameters
    and of those of the dense model that it comes from, as far as that is known, the versions of
    branchprune and torch, the digest of the weights in PyTorch (SHA-256), and what makes the wide
    model, if that is said. Of a model that was loaded and has the weights of its file, it has what
    that says, too: `keep`, `metric`, `license`, and how the model was made.

    Args:
        model: The model.
        made_by: See `bp.save`.
        init_args: See `bp.save`.

    Raises:
        PruneError: `made_by` is no name, or JSON cannot hold `init_args`.
    """
    widths = {name: sizes(module) for name, module in model.named_modules() if sizes(module)}
    digest = model_digest(model)
    facts = Facts(checked_origin(made_by, init_args)).over(remembered(model, digest))
    return {
        "format": FORMAT,
        "class": class_name(model),
        "widths": json.dumps(widths),
        **params_of(model),
        DIGEST: digest,
        "branchprune": __version__,
        "torch": str(torch.__version__),
        **facts.as_fields(),
    }

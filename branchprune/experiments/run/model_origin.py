"""What makes the model of a configuration, for the headers of the files that a run writes."""

from __future__ import annotations

from typing import Any

import yaml

from branchprune.artifacts.origin import INIT_ARGS, origin_fields
from branchprune.errors import PruneError


def model_origin(text: str) -> tuple[str | None, dict[str, Any]]:
    """Return the import path of a configuration's model, and its arguments.

    Args:
        text: The configuration, as YAML.

    Returns:
        Both; None and no arguments, where a header cannot hold them, or some are objects of classes
        that the configuration names as well.
    """
    model = (yaml.safe_load(text) or {}).get("model") or {}
    path, init_args = model.get("class_path"), model.get("init_args") or {}
    try:
        written = origin_fields(path, init_args)
    except PruneError:
        return None, {}
    return (None, {}) if "class_path" in written.get(INIT_ARGS, "") else (path, init_args)

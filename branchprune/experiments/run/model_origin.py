"""What makes the model of a configuration, for the headers of the files that a run writes."""

from __future__ import annotations

import yaml

from branchprune.artifacts.origin import INIT_ARGS, Origin, checked_origin
from branchprune.errors import PruneError


def model_origin(text: str) -> Origin | None:
    """Return what makes the model of a configuration: an import path, and arguments.

    Args:
        text: The configuration, as YAML.

    Returns:
        None, where a header cannot hold it, or some arguments are objects of classes that the
        configuration names as well.
    """
    model = (yaml.safe_load(text) or {}).get("model") or {}
    try:
        found = checked_origin(model.get("class_path"), model.get("init_args"))
    except PruneError:
        return None
    return None if found and "class_path" in found.as_fields()[INIT_ARGS] else found

"""Whether two configurations say the same: their settings by dotted path, and a digest of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

TARGET = "prune.widths.target"
PLACES = (
    *("output", "results", "accelerator", "dense.checkpoint"),
    *(f"{TARGET}.latency_table", f"{TARGET}.cache"),
)
"""Settings that say where a run is made, and not what it does."""
LATER: dict[str, Any] = {
    "export": None,
    TARGET: None,
    **{f"{TARGET}.{what}": None for what in ("macs", "params", "memory", "latency", "latency_ms")},
    **{f"{TARGET}.{key}": None for key in ("runtime", "threads")},
    "prune.cut.rewind": None,
    "prune.depth": None,
    f"{TARGET}.floor": 0.1,
    f"{TARGET}.allocation": "selected",
}
"""Settings that came later, with what says that all is as it was before: the digests of results of
that time stay what they are."""
OF_DENSE = ("model", "data", "task", "dense", "seed", "fast", "precision", "compile")
"""Sections on which the dense training depends."""


def settings_of(text: str, sections: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a stored configuration says of a run's work, by dotted path.

    Args:
        text: The configuration, as YAML.
        sections: The sections that count; empty: all.
    """
    found = flat(yaml.safe_load(text) or {})
    chosen = {k: v for k, v in found.items() if not sections or k.partition(".")[0] in sections}
    return {
        key: value
        for key, value in chosen.items()
        if key not in PLACES and not (key in LATER and value == LATER[key])
    }


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted paths, in their order, at which settings differ or are missing."""
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def digest(text: str) -> str:
    """Return twelve digits that differ where configurations differ; see `settings_of`."""
    settings = json.dumps(settings_of(text), sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted path."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [flat(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}

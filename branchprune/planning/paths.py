"""Paths of modules, as users give them: one or several, and each of a module that there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from branchprune.errors import PruneError


def names(argument: str, value: Any) -> tuple[str, ...]:
    """Return an argument that is one path or several as a tuple of them."""
    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise PruneError(f"{argument} (={value!r}) must be a path of a module or several of them")
    return names


def check_named(model: nn.Module, named: Mapping[str, Sequence[str]]) -> None:
    """Raise for a path, of those in each argument, that is none of a module."""
    known = {name for name, _ in model.named_modules()}
    for argument, layers in named.items():
        for name in layers:
            if name in known and (name or argument in ("inside", "keep")):
                continue
            near = get_close_matches(str(name), known - {""}, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise PruneError(f"{argument} names the layer {name!r}, which the model lacks{hint}")

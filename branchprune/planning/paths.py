"""Paths of layers and modules, as the arguments of a plan name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from branchprune.errors import PruneError
from branchprune.graph.structure import Pieces, Structure


def paths_of(argument: str, value: Any) -> tuple[str, ...]:
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
            numbered = argument in ("keep", "exclude") and isinstance(name, str)
            group = numbered and name.partition("#")[0]
            if (name in known or group in known) and (name or argument in ("inside", "keep")):
                continue
            near = get_close_matches(str(name), known - {""}, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise PruneError(f"{argument} names the layer {name!r}, which the model lacks{hint}")


def check_reached(structure: Structure, named: Mapping[str, Sequence[str]]) -> None:
    """Raise for a path in `keep` or `exclude` that has nothing to do with any channels."""
    layers = {name for names in makers(structure) for name in names}
    layers |= {group.name for group in structure.groups}
    reached = {"keep": layers, "exclude": layers | {*structure.channelwise}}
    for argument, members in reached.items():
        for name in named[argument]:
            if name and not any(within(member, [name]) for member in members):
                near = get_close_matches(name, members, n=1, cutoff=0.0)
                hint = f"; the nearest that does is {near[0]!r}" if near else ""
                raise PruneError(f"{argument} names {name!r}, which makes no channels{hint}")


def makers(structure: Structure) -> list[tuple[str, ...]]:
    """Return for each group the paths of the layers that make its channels."""
    found: list[dict[str, None]] = [{} for _ in structure.groups]
    for name, outputs in outputs_of(structure).items():
        for piece in outputs:
            found[piece.group][name] = None
    return [tuple(names) for names in found]


def outputs_of(structure: Structure) -> dict[str, Pieces]:
    """Return what makes channels, by its path: layers, and weights of functional convolutions."""
    layers = {name: layer.outputs for name, layer in structure.linears.items()}
    layers |= {name: layer.outputs for name, layer in structure.twins.items()}
    return layers | {n: weight.outputs for n, weight in structure.parameters.items()}


def within(name: str, modules: Iterable[str]) -> str | None:
    """Return the most specific of the modules that is, or contains, the named layer."""
    around = [m for m in modules if name == m or name.startswith(f"{m}.")]
    return max(around, key=len, default=None)

"""Whether a file is of a model: classes, settings of layers, widths and every shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.graph.full_shapes import Shapes, full_shapes, shapes
from branchprune.graph.layers import (
    CONVOLUTIONS,
    SIZE_ATTRIBUTES,
    SIZES_OF_CLASSES,
    TRANSPOSED,
    linear_sizes,
    sizes,
)

Attributes = dict[str, dict[str, Any]]
FREE = {*SIZE_ATTRIBUTES, *chain(*SIZES_OF_CLASSES.values()), "inplace", "momentum"}
"""What a layer says of itself that pruning or training changes, and that is no other model."""
SHOWN = 3
"""Differences that an error names."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Args:
        state: The tensors by name.
        widths: What each layer's attributes say of its width, by path.
        kind: The class of the model; None: the file does not say.
        numbers: The widths that attributes of users' modules name, by path and attribute.
        followed: Those of them that collapsing has set.
        settings: Class and settings of each module, by path; empty: not said.
        full: Shapes of the dense model that the model comes from; None: not said.
        shortcuts: What follows the sum of the residual blocks that are left out, by path.
    """

    state: dict[str, Tensor]
    widths: Attributes
    kind: str | None = None
    numbers: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    followed: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    settings: Attributes = field(default_factory=dict)
    full: Shapes | None = None
    shortcuts: dict[str, str] = field(default_factory=dict)


def class_name(model: nn.Module) -> str:
    """Return the name of a model's class, wherever it was defined."""
    return bare(type(model).__qualname__)


def bare(name: str) -> str:
    """Return a qualified name without the function in which the class was defined."""
    return name.rpartition("<locals>.")[2]


def settings(model: nn.Module) -> Attributes:
    """Return the class of each module, and kernel, stride, eps, … of those of torch.nn, by path.

    What pruning changes is left out, and so are containers, and dropout, which a trained model may
    do without.
    """
    modules = dict(model.named_modules())
    return {name: _settings(module) for name, module in modules.items() if name and _counts(module)}


def _counts(module: nn.Module) -> bool:
    dropout = (nn.modules.dropout._DropoutNd, nn.Identity)
    return not isinstance(module, dropout) and type(module).__module__ != nn.Sequential.__module__


def _settings(module: nn.Module) -> dict[str, Any]:
    kinds = [k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules")]
    names = {name for kind in kinds for name in vars(kind).get("__constants__", ())} - FREE
    named = {name: getattr(module, name, None) for name in sorted(names)}
    # A module, as of an encoder its last norm, is one of those that are compared by themselves.
    values = {k: _plain(v) for k, v in named.items() if not isinstance(v, nn.Module)}
    known = kinds[0] is not nn.Module
    kind = kinds[0].__name__ if known else class_name(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # of any dimension, synchronised or not
        kind = "BatchNorm"
    return {"class": kind, **values}


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def differences(model: nn.Module, content: Content) -> str:
    """Return the first differences between a model at full width and a file, and their number.

    Returns:
        A part of a message; empty: the file is of this model.
    """
    found = [*_differences(model, content)]
    more = f"; and {len(found) - SHOWN} differences more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _differences(model: nn.Module, content: Content) -> Iterator[str]:
    if content.kind is not None and bare(content.kind) != class_name(model):
        yield (
            f"it is a {bare(content.kind)}, not a {class_name(model)} (of a class with a new name, "
            "set __qualname__ to the old one)"
        )
    yield from _keys(model, content)
    modules = dict(model.named_modules())
    yield from _shapes(model, modules, content)
    yield from _widths(modules, content)
    for name, said in content.settings.items():
        if name in modules and _counts(modules[name]):
            yield from _other_settings(name, _settings(modules[name]), said)
    yield from _parts(settings(model), content.settings)
    yield from _ties(model, content.state)


def _keys(model: nn.Module, content: Content) -> Iterator[str]:
    expected, state = model.state_dict().keys(), content.state.keys()
    yield from (f"it lacks {name}" for name in expected if name not in state)
    yield from (f"it has {name}" for name in sorted(state - expected))


def _parts(here: Attributes, said: Attributes) -> Iterator[str]:
    """Yield modules without tensors, such as an activation, that only one of both has."""
    if said:
        yield from (
            f"it lacks {name}, a {here[name]['class']}" for name in here if name not in said
        )
        yield from (f"it has {name}, a {said[name]['class']}" for name in said if name not in here)


def _other_settings(name: str, here: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    if here["class"] != said["class"]:
        yield f"{name} is a {said['class']}, not a {here['class']}"
        return
    for key in sorted(here.keys() & said.keys()):
        if here[key] != said[key]:
            yield f"{name} has {key}={said[key]}, not {here[key]}"


def _widths(modules: Mapping[str, nn.Module], content: Content) -> Iterator[str]:
    """Yield layers whose attributes say what their tensors do not, or what no narrower one says."""
    for name, said in content.widths.items():
        if name not in modules:
            yield f"it has a layer {name}"
            continue
        module, weight = modules[name], content.state.get(f"{name}.weight".lstrip("."))
        here = sizes(module)
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)) and weight is not None:
            groups = said.get("groups", 1)
            dense = tuple((content.full or {}).get(f"{name}.weight", ()))
            held = linear_sizes(module, weight, groups) if weight.dim() > 1 else {}
            for key in held.keys() & said.keys():
                if held[key] != said[key]:
                    yield f"{name} says {key}={said[key]}, and its weight {held[key]}"
            depthwise = here.get("groups") == here.get("in_channels")
            # A grouped layer that pruning left with a channel a block goes on as a depthwise one.
            became = groups == said.get("in_channels") and dense == tuple(module.weight.shape)
            if groups != here.get("groups", 1) and not depthwise and not became:
                yield f"{name} has groups={groups}, not {here.get('groups')}"
    for name, module in modules.items():
        if sizes(module) and name not in content.widths:
            yield f"it says no width of {name}"


def _shapes(model: nn.Module, modules: Mapping[str, nn.Module], content: Content) -> Iterator[str]:
    """Yield tensors that no narrower copy of the model has."""
    here = shapes(model)
    full = full_shapes(model) or here
    for name in [name for name in here if name in content.state]:
        new, dense = tuple(content.state[name].shape), (content.full or {}).get(name)
        path, _, key = name.rpartition(".")
        if dense is not None and tuple(dense) not in (here[name], full[name]) and new != here[name]:
            yield f"{name} has shape {new}, pruned from {tuple(dense)}, not {here[name]}"
        elif not _fits(modules.get(path), key, here[name], new):
            yield f"{name} has shape {new}, not {here[name]}"


def _fits(module: nn.Module | None, key: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Return whether a shape differs from the model's in nothing but fewer channels.

    Those are counted by the first two dimensions (of a fully connected layer, times positions) or,
    except in a kernel, by any other one.
    """
    if len(old) != len(new) or any(a < b for a, b in zip(old, new, strict=True)):
        return False
    differing = {i for i, size in enumerate(old) if size != new[i]}
    kernel = key == "weight" and hasattr(module, "kernel_size")
    return differing <= {0, 1} or (len(differing) == 1 and not kernel)


def _ties(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield parameters that are one in the model and several in the file."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if name in state and other in state and not torch.equal(state[name], state[other]):
            yield f"{other} and {name} are two parameters, not one"

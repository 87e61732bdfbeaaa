"""What modules hold in attributes of their own, beside parameters, buffers and modules."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that torch gives to every module."""


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a module has beside those of every module."""
    return {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that the modules of a model hold, also in lists and dictionaries."""
    for module in model.modules():
        yield from tensors_in(own_attributes(module))


def leaves(value: Any) -> Iterator[Any]:
    """Yield what stands in lists, tuples and dictionaries, however nested; else the value."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | deque):
        yield value
        return
    for each in value:
        yield from leaves(each)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among the `leaves` of a value."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def changeable(module: nn.Module) -> list[Any]:
    """Return the lists, dictionaries and sets that a module holds."""
    values = own_attributes(module).values()
    return [value for value in values if type(value) in (list, dict, set)]


def copies_of_nothing(model: nn.Module) -> dict[int, Any]:
    """Return a copy of each empty dictionary and set that modules hold, by its id.

    Every module holds a dozen, such as those of its hooks, and deepcopy takes far longer for each
    than to find it among what is copied already.
    """
    kinds = (OrderedDict, dict, set)
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in held if type(value) in kinds and not value}

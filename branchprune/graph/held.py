"""What modules hold in attributes of their own, beside parameters, buffers and modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that torch gives to every module."""
CONTAINERS = (list, tuple, dict)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a module has beside those of every module."""
    return {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that the modules of a model hold, also in lists and dictionaries."""
    for module in model.modules():
        for value in own_attributes(module).values():
            leaves = tree_leaves(value) if isinstance(value, CONTAINERS) else (value,)
            yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))


def changeable(module: nn.Module) -> list[Any]:
    """Return the lists, dictionaries and sets that a module holds."""
    values = own_attributes(module).values()
    return [value for value in values if type(value) in (list, dict, set)]

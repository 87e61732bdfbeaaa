"""Numbers that a user's module keeps of its layers' widths, such as `self.channels = 64`."""

from __future__ import annotations

import copy
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from branchprune.graph.layers import SIZE_ATTRIBUTES, has_own_forward
from branchprune.graph.module_numbers import numbers_in
from branchprune.graph.structure import Pieces, Structure, size_of
from branchprune.graph.width_constraints import values_at

Widths = Mapping[int, set[int]]
"""For each width before, what it becomes; several numbers where layers differ."""

SHOWN = 5
"""Attributes that a line lists."""
LETTERS = 32
"""Of one value that a line shows."""
_COUNTS_OTHERS = re.compile(
    r"(?:image|img|kernel|patch|window|pool|input|batch|block|step)_?size|kernel|stride|pad|dilat|"
    r"group|head|class|resol|height|level|depth|layer|step|epoch|reduc|scale|seed|ratio|repeat"
)
"""Names of attributes that count something else than channels."""


@dataclass(frozen=True)
class WidthAttribute:
    """An attribute of a module that holds a width which changes.

    Attributes:
        module: Path of the module; "" for the model.
        name: Name of the attribute.
        before: Its value: a number, or tuples, lists and dictionaries with numbers.
        after: Its value at the new widths; None where layers of the module that had this width
            get different ones.
    """

    module: str
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        path = f"{self.module}.{self.name}" if self.module else self.name
        after = "" if self.after is None else f" → {_shown(self.after)}"
        return f"{path} = {_shown(self.before)}{after}"


def _shown(value: Any) -> str:
    """Return a value as shown to people, the beginning of a long one."""
    text = reprlib.repr(value)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def width_attributes(
    model: nn.Module, structure: Structure, kept: Sequence[int]
) -> tuple[WidthAttribute, ...]:
    """Return the attributes of users' modules that equal a width of a layer within, if it changes.

    Those that forward is seen to read are left out: see `followed_attributes`.

    Args:
        model: The model at its widths before.
        structure: Its structure.
        kept: The width that each group keeps.
    """
    read = {
        (attribute.module, attribute.name)
        for graph in structure.graphs.values()
        for node in graph.nodes
        for number in numbers_in((node.args, node.kwargs))
        for attribute in number.attributes
    }
    by_layer = _widths_of_layers(model, structure, kept)
    found: list[WidthAttribute] = []
    for path, module in model.named_modules():
        if not any(True for _ in candidates(module)):
            continue
        widths: dict[int, set[int]] = {}
        for part in module.modules():
            for before, after in by_layer.get(part, ()):
                widths.setdefault(before, set()).add(after)
        changing = {before: after for before, after in widths.items() if after != {before}}
        # The sizes of a layer itself change with its weight.
        own = SIZE_ATTRIBUTES if module in by_layer else ()
        attributes = _attributes(path, module, changing) if changing else ()
        found += [a for a in attributes if a.name not in own and (path, a.name) not in read]
    return tuple(found)


def followed_attributes(
    model: nn.Module, structure: Structure, kept: Sequence[int]
) -> tuple[WidthAttribute, ...]:
    """Return the attributes that forward reads as a width, if it changes.

    Args:
        model: The model at its widths before.
        structure: Its structure.
        kept: The width that each group keeps.
    """
    found: dict[tuple[str, str], WidthAttribute] = {}
    for attribute, value in values_at(structure.numbers, kept).items():
        key = (attribute.module, attribute.name)
        before = vars(model.get_submodule(attribute.module))[attribute.name]
        after = found[key].after if key in found else before
        if attribute.index is not None:
            i = attribute.index
            value = type(before)([*after[:i], value, *after[i + 1 :]])
        found[key] = WidthAttribute(*key, before, value)
    return tuple(found.values())


def _attributes(path: str, module: nn.Module, widths: Widths) -> Iterator[WidthAttribute]:
    for name, value in candidates(module):
        numbers = set(integers(value)) & widths.keys()
        if numbers:
            unclear = any(len(widths[number]) > 1 for number in numbers)
            after = None if unclear else changed(value, lambda n: max(widths.get(n, {n})))
            yield WidthAttribute(path, name, value, after)


def candidates(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a user's module that may hold widths."""
    if has_own_forward(module) or not type(module).__module__.startswith("torch.nn."):
        for name, value in vars(module).items():
            if not name.startswith("_") and not _COUNTS_OTHERS.search(name.lower()):
                yield name, value


def _widths_of_layers(
    model: nn.Module, structure: Structure, kept: Sequence[int]
) -> dict[nn.Module, set[tuple[int, int]]]:
    """Return for each layer the widths of what it reads and makes, before and after."""
    found: dict[nn.Module, set[tuple[int, int]]] = {}

    def note(name: str, pieces: Pieces, times: int = 1) -> None:
        widths = found.setdefault(model.get_submodule(name), set())
        widths.add((size_of(pieces) * times, size_of(pieces, kept) * times))
        widths.update((p.width, kept[p.group]) for p in pieces)

    for layer in structure.linears.values():
        note(layer.name, layer.outputs)
        if layer.inputs:
            note(layer.name, layer.inputs)
    for other in structure.channelwise.values():
        note(other.name, other.pieces)
        note(other.name, other.pieces, other.times)
    return found


def integers(value: Any) -> Iterator[int]:
    """Yield the integers in a number, or in tuples, lists and dictionaries of them."""
    if type(value) is int:
        yield value
    elif type(value) in (tuple, list):
        for each in value:
            yield from integers(each)
    elif type(value) is dict:
        yield from integers(list(value.values()))


def changed(value: Any, change: Callable[[int], int]) -> Any:
    """Return a value with each of its `integers` changed, in order."""
    if type(value) is int:
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(changed(each, change) for each in value)
    if type(value) is dict:
        return {key: changed(each, change) for key, each in value.items()}
    return value


def listed(attributes: Sequence[WidthAttribute]) -> str:
    """Return the first of some attributes, as shown to people, and how many more there are."""
    more = f" … {len(attributes) - SHOWN} more" if len(attributes) > SHOWN else ""
    return ", ".join(map(str, attributes[:SHOWN])) + more


def set_attributes(model: nn.Module, attributes: Sequence[WidthAttribute], after: bool) -> None:
    """Give attributes the values of the new widths, or those of the widths before."""
    for attribute in attributes:
        value = copy.deepcopy(attribute.after if after else attribute.before)
        vars(model.get_submodule(attribute.module))[attribute.name] = value


@contextmanager
def without_attributes(model: nn.Module, attributes: Sequence[WidthAttribute]) -> Iterator[None]:
    """Take attributes out of a model for a `with` block, so that reading one fails."""
    stores = [(vars(model.get_submodule(each.module)), each.name) for each in attributes]
    taken = [store.pop(name) for store, name in stores]
    try:
        yield
    finally:
        for (store, name), value in zip(stores, taken, strict=True):
            store[name] = value

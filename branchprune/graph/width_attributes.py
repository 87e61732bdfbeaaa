"""Numbers that a user's module keeps of its layers' widths, such as `self.channels = 64`."""

from __future__ import annotations

import copy
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from branchprune.graph.layers import SIZE_ATTRIBUTES, has_own_forward, sizes
from branchprune.graph.module_numbers import numbers_in
from branchprune.graph.structure import Pieces, Structure
from branchprune.graph.width_constraints import values_at

Widths = Mapping[int, set[int]]
"""For each width before, what it becomes; several numbers where layers differ."""

FOLLOWED = "_followed_numbers"
"""Attribute of a small model that holds the numbers that collapsing has set."""
SHOWN = 5
"""Attributes that a line lists."""
MOST = 1000
"""Numbers that an attribute may hold to be kept in a file."""
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
        after = "" if self.after is None else f" → {reprlib.repr(self.after)}"
        return f"{path} = {reprlib.repr(self.before)}{after}"


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
        if not any(True for _ in _candidates(module)):
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
    for name, value in _candidates(module):
        numbers = set(_numbers(value)) & widths.keys()
        if numbers:
            unclear = any(len(widths[number]) > 1 for number in numbers)
            after = None if unclear else _mapped(value, lambda n: max(widths.get(n, {n})))
            yield WidthAttribute(path, name, value, after)


def _candidates(module: nn.Module) -> Iterator[tuple[str, Any]]:
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
        after = [kept[piece.group] * piece.repeat for piece in pieces]
        widths.add((sum(p.size for p in pieces) * times, sum(after) * times))
        widths.update((p.width, kept[p.group]) for p in pieces)

    for layer in structure.linears.values():
        note(layer.name, layer.outputs)
        if layer.inputs:
            note(layer.name, layer.inputs)
    for other in structure.channelwise.values():
        note(other.name, other.pieces)
        note(other.name, other.pieces, other.times)
    return found


def _numbers(value: Any) -> Iterator[int]:
    """Yield the integers in a number, or in tuples, lists and dictionaries of them."""
    if type(value) is int:
        yield value
    elif type(value) in (tuple, list):
        for each in value:
            yield from _numbers(each)
    elif type(value) is dict:
        yield from _numbers(list(value.values()))


def _mapped(value: Any, change: Callable[[int], int]) -> Any:
    """Return a value with each of its `_numbers` changed, in order."""
    if type(value) is int:
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, change) for each in value)
    if type(value) is dict:
        return {key: _mapped(each, change) for key, each in value.items()}
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


def followed_numbers(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Return the numbers that collapsing has set in a small model, by path and attribute."""
    found: dict[str, dict[str, list[int]]] = vars(model).get(FOLLOWED, {})
    return found


def remember_followed(small: nn.Module, attributes: Sequence[WidthAttribute]) -> None:
    """Note in a small model which attributes collapsing has set."""
    found = {path: dict(numbers) for path, numbers in followed_numbers(small).items()}
    for each in attributes:
        found.setdefault(each.module, {})[each.name] = [*_numbers(each.after)]
    if found:
        vars(small)[FOLLOWED] = found


def kept_numbers(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Return the whole numbers that users' modules keep and that may be widths.

    They are ordered by the path of the module and the name of the attribute.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for path, module in model.named_modules():
        values = {name: [*_numbers(value)] for name, value in _candidates(module)}
        values = {name: numbers for name, numbers in values.items() if 0 < len(numbers) <= MOST}
        if values:
            found[path] = values
    return found


def take_over(
    narrow: nn.Module,
    dense: nn.Module,
    numbers: Mapping[str, Mapping[str, list[int]]],
    followed: Mapping[str, Mapping[str, list[int]]],
) -> None:
    """Give a narrowed model the numbers of another of the same widths.

    Args:
        narrow: The model, its layers narrowed already.
        dense: The same model before.
        numbers: The numbers by path and name. Those that no layer within a module has changed by
            are left alone.
        followed: Those of them that collapsing has set, since forward reads them as widths.
    """
    for path, module in narrow.named_modules():
        pairs = {
            (old, new)
            for name, part in module.named_modules(prefix=path)
            for old, new in zip(
                _numbers([*sizes(dense.get_submodule(name)).values()]),
                _numbers([*sizes(part).values()]),
                strict=False,
            )
        }
        for name, mine in _candidates(module):
            own, other = [*_numbers(mine)], numbers.get(path, {}).get(name, [])
            changes = [(a, b) for a, b in zip(own, other, strict=False) if a != b]
            belong = changes and all(_belongs(*change, pairs) for change in changes)
            if belong and len(own) == len(other):
                vars(module)[name] = _filled(mine, iter(other))
        for name, other in followed.get(path, {}).items():
            mine = vars(module).get(name)
            if len([*_numbers(mine)]) == len(other):
                vars(module)[name] = _filled(mine, iter(other))
    if followed:
        vars(narrow)[FOLLOWED] = followed


def _belongs(old: int, new: int, pairs: Collection[tuple[int, int]]) -> bool:
    """Return whether a layer has changed by these widths, or by a multiple of both."""
    return old > 0 and any(wide % old == 0 and wide * new == kept * old for wide, kept in pairs)


def _filled(value: Any, numbers: Iterator[int]) -> Any:
    """Return a value with its numbers replaced in order."""
    return _mapped(value, lambda _: next(numbers))

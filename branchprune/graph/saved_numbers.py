"""Whole numbers of users' modules in files: which are written, and which a loaded model gets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from branchprune.graph.layers import sizes
from branchprune.graph.width_attributes import WidthAttribute, candidates, changed, integers

FOLLOWED = "_followed_numbers"
"""Attribute of a small model that holds the numbers that collapsing has set."""
MOST = 1000
"""Numbers that an attribute may hold to be kept in a file."""


def followed_numbers(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Return the numbers that collapsing has set in a small model, by path and attribute."""
    found: dict[str, dict[str, list[int]]] = vars(model).get(FOLLOWED, {})
    return found


def remember_followed(small: nn.Module, attributes: Sequence[WidthAttribute]) -> None:
    """Note in a small model which attributes collapsing has set."""
    found = {path: dict(numbers) for path, numbers in followed_numbers(small).items()}
    for each in attributes:
        found.setdefault(each.module, {})[each.name] = [*integers(each.after)]
    if found:
        vars(small)[FOLLOWED] = found


def kept_numbers(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Return the whole numbers that users' modules keep and that may be widths.

    They are ordered by the path of the module and the name of the attribute.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for path, module in model.named_modules():
        values = {name: [*integers(value)] for name, value in candidates(module)}
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
                integers([*sizes(dense.get_submodule(name)).values()]),
                integers([*sizes(part).values()]),
                strict=False,
            )
        }
        for name, mine in candidates(module):
            own, other = [*integers(mine)], numbers.get(path, {}).get(name, [])
            changes = [(a, b) for a, b in zip(own, other, strict=False) if a != b]
            belong = changes and all(_belongs(*change, pairs) for change in changes)
            if belong and len(own) == len(other):
                vars(module)[name] = _filled(mine, iter(other))
        for name, other in followed.get(path, {}).items():
            mine = vars(module).get(name)
            if len([*integers(mine)]) == len(other):
                vars(module)[name] = _filled(mine, iter(other))
    if followed:
        vars(narrow)[FOLLOWED] = followed


def _belongs(old: int, new: int, pairs: Collection[tuple[int, int]]) -> bool:
    """Return whether a layer has changed by these widths, or by a multiple of both."""
    return old > 0 and any(wide % old == 0 and wide * new == kept * old for wide, kept in pairs)


def _filled(value: Any, numbers: Iterator[int]) -> Any:
    """Return a value with its numbers replaced in order."""
    return changed(value, lambda _: next(numbers))

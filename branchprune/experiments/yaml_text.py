"""YAML that says one thing: no key twice, and no more than it seems."""

from __future__ import annotations

from collections import Counter

import yaml

from branchprune.errors import PruneError

MOST = 100_000
"""Values that a text may stand for, each alias counted as all that it repeats."""


def check_yaml(text: str) -> None:
    """Raise for YAML that would be read as something else than its writer sees, or never.

    Args:
        text: One document.

    Raises:
        PruneError: It has a key twice in one mapping, is nested too deeply, or its aliases stand
            for too much, or for themselves.
        yaml.YAMLError: It is no YAML.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _count(node, {})
    except RecursionError as error:
        raise PruneError("nested too deeply for a configuration") from error


def _count(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for; `sizes` has those of nodes seen, 0 for begun."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise PruneError(f"an alias stands for itself{_place(node.start_mark)}")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_twice(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_count(child, sizes) for child in children)
    if size > MOST:
        raise PruneError(
            f"the aliases stand for more than {MOST:,} values{_place(node.start_mark)}"
        )
    sizes[id(node)] = size
    return size


def _check_twice(mapping: yaml.MappingNode) -> None:
    keys = [key for key, _ in mapping.value if isinstance(key, yaml.ScalarNode)]
    counts = Counter((key.tag, key.value) for key in keys)
    for key in reversed(keys):
        if counts[key.tag, key.value] > 1:
            raise PruneError(
                f"the key {key.value!r} is there twice{_place(key.start_mark)}: the first would be "
                "ignored; leave one out"
            )


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1})"

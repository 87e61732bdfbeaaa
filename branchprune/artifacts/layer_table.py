"""The layers of a file: their kinds, shapes and parameters, dense and small, without the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from branchprune.artifacts.header import BUFFERS, DENSE_PARAMS, PARAMS
from branchprune.artifacts.same_model import Content, bare
from branchprune.errors import PruneError

Shape = tuple[int, ...]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""How buffers end of which an earlier file does not say that they are."""


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own.

    Attributes:
        name: Its path; of the model itself empty.
        kind: Its class.
        shape: That of its weight, or of its first parameter.
        dense: The same in the dense model, where that is known.
        params: How many parameters it has, buffers left out.
        dense_params: The same in the dense model, where that is known.
    """

    name: str
    kind: str
    shape: Shape
    dense: Shape | None
    params: int
    dense_params: int | None


def layers_of(header: Mapping[str, str], content: Content) -> list[Layer]:
    """Return the layers of a file, in the order of its tensors.

    A parameter that several layers share is counted with each.

    Args:
        header: That of a file of `save`.
        content: What the file holds; of the tensors, only shapes are looked at.

    Raises:
        PruneError: What the header says of the dense shapes is damaged.
    """
    buffers = _buffers(header)
    owned: dict[str, list[str]] = {}
    for name in content.state:
        if name not in buffers if BUFFERS in header else not name.endswith(STATISTICS):
            owned.setdefault(name.rpartition(".")[0], []).append(name)
    order = {name: i for i, name in enumerate(content.settings)}
    paths = sorted(owned, key=lambda path: order.get(path, -1))
    return [_layer(path, owned[path], content) for path in paths]


def _buffers(header: Mapping[str, str]) -> set[str]:
    try:
        return {str(name) for name in json.loads(header.get(BUFFERS, "[]"))}
    except (ValueError, TypeError, RecursionError) as error:
        raise PruneError(f"the file is damaged: its header has damaged {BUFFERS!r}") from error


def _layer(path: str, names: Sequence[str], content: Content) -> Layer:
    shapes = {name: tuple(content.state[name].shape) for name in names}
    full = content.full
    known = {name: tuple(full[name]) for name in names if name in full} if full else {}
    weight = f"{path}.weight".lstrip(".")
    first = weight if weight in shapes else names[0]
    try:
        dense = sum(map(math.prod, known.values())) if len(known) == len(names) else None
    except TypeError as error:
        raise PruneError("the file is damaged: its header has damaged 'full'") from error
    own = content.kind if path == "" else None
    kind = content.settings.get(path, {}).get("class", bare(own or ""))
    count = sum(map(math.prod, shapes.values()))
    return Layer(path, str(kind), shapes[first], known.get(first), count, dense)


def total_params(header: Mapping[str, str], layers: Sequence[Layer]) -> tuple[int | None, int]:
    """Return the parameters of the dense model, if they are known, and of that in the file.

    Args:
        header: That of a file of `save` or `export`; an earlier one does not say it.
        layers: Those of the file, for such a one.

    Raises:
        PruneError: The header is damaged.
    """
    try:
        said = {key: int(header[key]) for key in (PARAMS, DENSE_PARAMS) if key in header}
    except ValueError as error:
        raise PruneError("the file is damaged: its header has damaged numbers") from error
    if PARAMS in said:
        return said.get(DENSE_PARAMS), said[PARAMS]
    dense = [layer.dense_params for layer in layers if layer.dense_params is not None]
    known = len(dense) == len(layers) > 0
    return sum(dense) if known else None, sum(layer.params for layer in layers)

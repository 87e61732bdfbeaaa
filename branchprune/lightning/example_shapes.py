"""An example without its numbers: what a checkpoint keeps of it, and one that is like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from branchprune.errors import PruneError

PLAIN = bool | int | float | str | None


def shapes_of(example: Any) -> dict[str, Any]:
    """Return shapes and dtypes of an example, of nothing but numbers, texts, lists, dictionaries.

    Args:
        example: A tensor, or tuples, lists and dictionaries of such.
    """
    if isinstance(example, Tensor):
        dtype = str(example.dtype).removeprefix("torch.")
        return {"tensor": [*example.shape], "dtype": dtype}
    if isinstance(example, Mapping):
        return {"dict": {str(key): shapes_of(value) for key, value in example.items()}}
    if isinstance(example, tuple | list):
        kind = "tuple" if isinstance(example, tuple) else "list"
        return {kind: [*map(shapes_of, example)]}
    return {"value": example} if isinstance(example, PLAIN) else {}


def example_like(shapes: Mapping[str, Any]) -> Any:
    """Return an example of random numbers, and of zeros where they are whole.

    Args:
        shapes: What `shapes_of` returned.

    Raises:
        PruneError: There was something in the example that no checkpoint keeps.
    """
    if "tensor" in shapes:
        made = torch.zeros(shapes["tensor"], dtype=getattr(torch, shapes["dtype"]))
        return made.normal_() if made.is_floating_point() else made
    if "dict" in shapes:
        return {key: example_like(value) for key, value in shapes["dict"].items()}
    if "tuple" in shapes:
        return tuple(map(example_like, shapes["tuple"]))
    if "list" in shapes:
        return [*map(example_like, shapes["list"])]
    if "value" not in shapes:
        raise PruneError("example is missing: the checkpoint does not say of what it is")
    return shapes["value"]

"""What is wrong with an example, told at the argument and not by the layer that fails."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.errors import PruneError
from branchprune.graph.inputs import Example, call, tensors, training_mode, untouched
from branchprune.graph.layers import CONVOLUTIONS, TRANSPOSED


def refuse_shape(example: Example) -> None:
    """Raise a PruneError for a shape, or several, in place of tensors.

    Args:
        example: What `plan` was given.
    """
    shapes = [example] if _is_shape(example) else example
    if not isinstance(shapes, tuple | list) or not shapes or not all(map(_is_shape, shapes)):
        return
    written = ", ".join(f"torch.randn({', '.join(map(str, shape))})" for shape in shapes)
    raise PruneError(
        f"example (={example!r}) is a shape and no tensor: give "
        f"{written if len(shapes) == 1 else f'({written})'}, or whole numbers by the names of "
        "forward's arguments, in a dictionary"
    )


def _is_shape(value: Any) -> bool:
    numbers = isinstance(value, tuple | list) and len(value) > 1
    return numbers and all(type(number) is int for number in value)


def refuse_single(model: nn.Module, example: Example) -> None:
    """Raise a PruneError if a model takes an example when its tensors get a batch dimension.

    Args:
        model: The model.
        example: An example with which it could not be traced.
    """
    batched: Example = tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0), example)
    if _runs(model, example) or not _runs(model, batched):
        return
    before, after = (
        ", ".join(str(tuple(tensor.shape)) for tensor in tensors(each))
        for each in (example, batched)
    )
    raise PruneError(
        f"example (shape {before}) has no batch dimension: give `tensor.unsqueeze(0)` in place of "
        f"each tensor, shape {after}"
    )


def _runs(model: nn.Module, example: Example) -> bool:
    """Return whether a model runs on an example, and its convolutions on batches."""
    layers = [m for m in model.modules() if isinstance(m, CONVOLUTIONS + TRANSPOSED)]
    hooks = [layer.register_forward_pre_hook(_refuse_single_image) for layer in layers]
    try:
        with torch.no_grad(), untouched(model), training_mode(model, False):
            call(model, example)
    except Exception:
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return True


def _refuse_single_image(layer: nn.Module, args: tuple[Any, ...]) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if args and args[0].dim() < weight.dim():
        raise ValueError

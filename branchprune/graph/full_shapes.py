"""A small model remembers the shapes of the dense one that it comes from."""

from __future__ import annotations

from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
NAME = "_full_shapes"
"""Attribute of a small model that holds them; a copy of the model has it, too."""


def shapes(model: nn.Module) -> Shapes:
    """Return the shape of every tensor in a model's state, by its name."""
    state = model.state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor)}


def full_shapes(model: nn.Module) -> Shapes | None:
    """Return the shapes of the dense model that a small one comes from; None: not known."""
    found: Shapes | None = vars(model).get(NAME)
    return found


def remember_full_shapes(small: nn.Module, before: nn.Module) -> None:
    """Note the shapes of the dense model in a small one.

    Args:
        small: The small model; it is changed.
        before: The model that it comes from, dense or small itself.
    """
    vars(small)[NAME] = full_shapes(before) or shapes(before)

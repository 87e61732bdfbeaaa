"""What users teach the library of their own modules, functions and methods of tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.graph.state import Rule

Operation = type[nn.Module] | Callable[..., Any] | str

TAUGHT: dict[Callable[..., Any], Rule] = {}
"""Functions that users have taught, in order; a trace does not look into them."""
TAUGHT_CLASSES: dict[type[nn.Module], Rule] = {}
"""Classes of modules that users have taught, in order."""
TAUGHT_METHODS: dict[str, Rule] = {}
"""Methods of tensors that users have taught, by their names."""


def teach(operation: Operation, rule: Rule) -> None:
    """Teach the library what a module class, a function or a method of tensors does to channels.

    ```python
    bp.teach(MyActivation, bp.rules.same)  # treats every channel alike, has no weights of its own
    bp.teach(MyNorm, bp.rules.channelwise)  # has one entry a channel in each parameter
    bp.teach(my_function, bp.rules.elementwise)  # combines tensors entry by entry
    bp.teach("renorm", bp.rules.opaque)  # a method of tensors: what it reads keeps its width
    ```

    A trace no longer looks into what has been taught, so it may hold anything. A module taught as
    `same` or `channelwise` is tried out on random numbers whenever it is met: one that gives
    something else when its channels are put in another order keeps its width, and the plan says
    so. What is taught holds for all models until `forget`.

    Args:
        operation: A class of modules (subclasses follow), a function that forward calls by its
            name in a module's globals, an `autograd.Function`, or the name of a method of tensors,
            which is meant in its form in place and as an operator, too.
        rule: One of `bp.rules`, or a function `(analysis, node) -> Layout | None` of your own.

    Raises:
        PruneError: The operation or the rule is of another kind.
    """
    if not callable(rule):
        raise PruneError(f"rule (={rule!r}) must be one of bp.rules or a function like them")
    store, key = _place(operation)
    store[key] = rule


def forget(operation: Operation) -> None:
    """Take back what was taught of an operation: the library's own rule holds again.

    Args:
        operation: What was given to `teach`.

    Raises:
        PruneError: Nothing was taught of it.
    """
    store, key = _place(operation)
    if key not in store:
        raise PruneError(f"operation (={operation!r}) has not been taught")
    del store[key]


def _place(operation: Any) -> tuple[dict[Any, Rule], Any]:
    """Return where an operation is taught, and by which key.

    Raises:
        PruneError: It is of another kind.
    """
    if isinstance(operation, type) and issubclass(operation, nn.Module):
        return TAUGHT_CLASSES, operation
    if (
        hasattr(operation, "__objclass__")
        or getattr(operation, "__module__", "") == "torch._tensor"
    ):
        operation = operation.__name__
    if isinstance(operation, str) and callable(getattr(Tensor, operation, None)):
        plain = operation.removesuffix("_")
        in_place = operation != plain and not operation.startswith("_") and hasattr(Tensor, plain)
        return TAUGHT_METHODS, plain if in_place else operation
    if _is_autograd_function(getattr(operation, "__self__", None)):
        operation = operation.__self__  # MyFunction.apply is a new object at every look
    if _is_function(operation) or _is_autograd_function(operation):
        return TAUGHT, operation
    raise PruneError(
        f"operation (={operation!r}) must be a class of modules, a function, an autograd.Function "
        "or the name of a method of tensors"
    )


def _is_autograd_function(operation: object) -> bool:
    return isinstance(operation, type) and issubclass(operation, torch.autograd.Function)


def _is_function(operation: object) -> bool:
    """Return whether a trace can find something by its identity, and call it."""
    named = not isinstance(operation, type | nn.Module) and isinstance(operation, Hashable)
    return named and callable(operation)

"""Functions and classes that a configuration names by their import path."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from branchprune.errors import PruneError


def function_at(path: str, argument: str) -> Callable[..., Any]:
    """Return a function or class by its import path, such as "torch.optim.AdamW".

    Args:
        path: The import path.
        argument: What it was given as, for the message of an error.

    Raises:
        PruneError: It cannot be imported, or cannot be called.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise PruneError(f"{argument} (={path!r}) cannot be imported: {error}") from error
    if not callable(found):
        raise PruneError(f"{argument} (={path!r}) is not a function")
    function: Callable[..., Any] = found
    return function

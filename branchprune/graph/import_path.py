"""Functions and classes that a configuration or a file names by their import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
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
    found = value_at(path, argument)
    if not callable(found):
        raise PruneError(f"{argument} (={path!r}) is not a function")
    function: Callable[..., Any] = found
    return function


def value_at(path: str, argument: str, wanted: Callable[[Any], bool] = callable) -> Any:
    """Return what has an import path.

    Args:
        path: The import path.
        argument: What it was given as, for the message of an error.
        wanted: Whether something could be meant; the nearest name of that is in the message.

    Raises:
        PruneError: It cannot be imported.
    """
    module, _, name = path.rpartition(".")
    what = f"{argument} (={path!r})"
    if not module or not name:
        raise PruneError(f"{what} is no import path, such as module.name")
    try:
        imported = import_module(module)
    except ImportError as error:
        raise PruneError(f"{what}: {_one_line(error)}") from error
    except Exception as error:  # whatever the module does
        failure = f"{type(error).__name__}: {_one_line(error)}"
        raise PruneError(f"{what}: {module} fails while it is imported: {failure}") from error
    if not hasattr(imported, name):
        near = _nearest(name, vars(imported), wanted)
        raise PruneError(f"{what}: module {module} has no {name}{near}")
    return getattr(imported, name)


def _nearest(name: str, content: Mapping[str, Any], wanted: Callable[[Any], bool]) -> str:
    names = [each for each in content if not each.startswith("_") and wanted(content[each])]
    found = get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; the nearest is {found[0]}" if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

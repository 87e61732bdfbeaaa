"""What a model is run by once it is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import nn

from branchprune.errors import PruneError, first_line, whole
from branchprune.graph.inputs import Example, tensors

Step = Callable[[], object]
"""Runs a model once, and returns its outputs as the runtime has them."""
Opened = Callable[[Example], Step]
"""A file that a runtime has read: what runs it, for an example."""


class _Package(Protocol):
    """What runs models, with its settings.

    Attributes:
        name: What it is called in tables and files.
        threads: How many threads it uses.
    """

    name: str
    threads: int

    def version(self) -> str:
        """Return the version of its package."""


class Runtime(_Package, Protocol):
    """A runtime that takes models."""

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example, in evaluation mode.

        Args:
            model: The model; it is not changed.
            example: Its inputs, of which sizes are those of all later ones.

        Raises:
            PruneError: The runtime cannot run it.
        """


class FileRuntime(_Package, Protocol):
    """A runtime that reads files."""

    def opened(self, file: Path, what: str) -> Opened:
        """Read a file.

        Args:
            file: Its path.
            what: What it is called in messages.

        Raises:
            PruneError: The runtime cannot read it, or later, cannot run it.
        """


@contextmanager
def running(what: str, name: str, told: Callable[[Exception], str] = first_line) -> Iterator[None]:
    """Say of any error that a runtime raises what it cannot run, for a `with` block.

    Args:
        what: What it runs.
        name: The runtime's.
        told: Returns in a line what an error of its own classes says.

    Raises:
        PruneError: It has raised one.
    """
    try:
        yield
    except Exception as error:  # of the runtime's own classes
        raise PruneError(f"{name} cannot run {what}: {told(error)}") from error


def arrays_of(example: Example) -> list[Any]:
    """Return the tensors of an example as arrays of NumPy, in their order."""
    return [each.detach().cpu().numpy() for each in tensors(example)]


def threads_of(threads: int | None) -> int:
    """Return how many threads to use: those asked for, or one for each core."""
    if threads is None:
        return os.cpu_count() or 1
    whole("threads", threads, 1)
    return threads


def needed(module: str, what: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: Its name.
        what: What needs it.
        extra: The extra of branchprune that installs it.

    Raises:
        PruneError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise PruneError(
            f"{what} needs {module}, which cannot be imported ({error}): "
            f"pip install 'branchprune[{extra}]'"
        ) from error

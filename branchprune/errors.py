"""The one error class of the library, and checks that many of its parts need."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

INSTALL = dict.fromkeys(
    """PIL jinja2 jsonargparse markupsafe matplotlib numpy pytorch_lightning pytorch_msssim rich
    scipy sklearn tensorboard torchmetrics torchvision yaml""".split(),
    "branchprune",
) | {
    **dict.fromkeys(("timm", "segmentation_models_pytorch", "ultralytics"), "branchprune[zoo]"),
    "torch_pruning": "branchprune[compare]",
    "optuna": "branchprune[search]",
}
"""What `pip` has to be told, for each package that the core does without."""


class PruneError(ValueError):
    """A model, argument, file or training run that branchprune cannot work with.

    The message names the layer or argument and its value.
    """


class Failed(PruneError):
    """What was asked for is right, and could not be done: a full disk, a loss that is NaN.

    Commands end with the status 1, not with the 2 of a user's error.
    """


def whole(name: str, value: object, least: int = 0) -> None:
    """Raise PruneError for an argument that is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PruneError(f"{name} (={value!r}) must be a whole number of at least {least}")


def positive(name: str, value: object) -> None:
    """Raise PruneError for an argument that is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise PruneError(f"{name} (={value!r}) must be positive and finite")


def not_negative(name: str, value: object) -> None:
    """Raise PruneError for an argument that is not a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise PruneError(f"{name} (={value!r}) must not be negative, infinite or NaN")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, with its kind where that says too little.

    A bare `assert` says nothing, and of a key that is missing there is the key alone.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"KeyError: {line}" if isinstance(error, KeyError) and error.args else line


def optional(package: str, user: str) -> Any:
    """Import a package that need not be installed.

    Args:
        package: Its name in an import, one of `INSTALL`.
        user: What needs it, for the message: an argument and its value.

    Raises:
        PruneError: It cannot be imported; the message says how to install it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise PruneError(_missing(package, user, error)) from error


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """Return one line on a package of ours that is missing; None if it is no package of ours."""
    package = (error.name or "").partition(".")[0]
    return _missing(package, "this command", error) if package in INSTALL else None


def _missing(package: str, user: str, error: ImportError) -> str:
    return f'{user} needs {package} ({error}): pip install "{INSTALL[package]}"'

"""What makes the wide model of a file: a name or import path, and arguments, as the header says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from branchprune.artifacts.opened import opened
from branchprune.errors import PruneError

MADE_BY, INIT_ARGS = "made_by", "init_args"
NAME = re.compile(r"[\w./:-]+", re.ASCII)
"""What a name or import path may be made of: it is printed, and a file may be a stranger's."""


@dataclass(frozen=True)
class Origin:
    """What makes the wide model of a file.

    Attributes:
        made_by: Name of a library's model or import path, as `branchprune plan` takes it.
        init_args: Arguments of the class or function at the import path.
    """

    made_by: str
    init_args: dict[str, Any] = field(default_factory=dict)

    def as_fields(self) -> dict[str, str]:
        """Return the fields of a header that say it.

        Raises:
            PruneError: `made_by` is no name, or JSON cannot hold `init_args`.
        """
        name, given = self.made_by, self.init_args
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PruneError(
                f"made_by (={name!r}) must be a name or an import path, my_package:Net"
            )
        try:
            text = json.dumps(given)
        except (TypeError, ValueError) as error:
            raise PruneError(f"init_args (={given!r}) cannot be written: {error}") from error
        if json.loads(text) != _as_lists(given):
            raise PruneError(f"init_args (={given!r}) must be numbers, texts, or lists of them")
        return {MADE_BY: name, INIT_ARGS: text}


def checked_origin(
    made_by: str | None, init_args: Mapping[str, Any] | None = None
) -> Origin | None:
    """Return what makes the wide model, as a user says it; None: it is not said.

    Args:
        made_by: See `Origin`.
        init_args: See `Origin`.

    Raises:
        PruneError: `made_by` is no name, JSON cannot hold `init_args`, or there are some without
            `made_by`.
    """
    try:
        given = dict(init_args or {})
    except (TypeError, ValueError) as error:
        raise PruneError(f"init_args (={init_args!r}) cannot be written: {error}") from error
    if made_by is not None:
        origin = Origin(made_by, given)
        origin.as_fields()
        return origin
    if given:
        raise PruneError(f"init_args (={given}) are those of made_by: give it, too")
    return None


def _as_lists(value: Any) -> Any:
    """Return a value with lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _as_lists(each) for key, each in value.items()}
    return [*map(_as_lists, value)] if isinstance(value, list | tuple) else value


def read_origin(path: Path) -> Origin | None:
    """Return what makes the wide model of a file; None: it does not say. Nothing is imported.

    Args:
        path: A safetensors file.

    Raises:
        PruneError: The file is missing, no safetensors file, or its header is damaged.
    """
    with opened(path) as file:
        header: dict[str, str] = file.metadata() or {}
    return origin_in(header, path)


def origin_in(header: Mapping[str, str], path: object) -> Origin | None:
    """Return what a header says that makes the wide model; None: it does not say.

    Args:
        header: The header of a file.
        path: The file, for the message of an error.

    Raises:
        PruneError: The header is damaged.
    """
    if MADE_BY not in header:
        return None
    try:
        init_args: Any = json.loads(header.get(INIT_ARGS, "{}"))
    except (ValueError, RecursionError):
        init_args = None
    if not NAME.fullmatch(header[MADE_BY]) or not isinstance(init_args, dict):
        raise PruneError(f"{path} is damaged: its header does not say what made the model")
    return Origin(header[MADE_BY], init_args)


def package_of(made_by: str) -> str:
    """Return the package that an import path leads into."""
    return made_by.partition(":")[0].partition(".")[0]

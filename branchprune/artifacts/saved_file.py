"""Reading a file that `save` has written, checked to be whole; nothing in it is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from branchprune.artifacts import checksum
from branchprune.artifacts.opened import opened
from branchprune.artifacts.same_model import Content
from branchprune.errors import PruneError
from branchprune.graph.shortcut import ACTIVATIONS
from branchprune.version import __version__

FORMAT, EARLIER = "branchprune/2", "branchprune/1"
"""What the header of a file says it is; an earlier one has neither checksum nor settings."""
OURS = re.compile(r"branchprune/[0-9]+")
AS_JSON = ("widths", "numbers", "followed", "settings", "full", "shortcuts")
"""What else it holds of the model, as JSON."""
IN_FOLDER = "model.safetensors"
"""Name of the file in a folder, as the Hugging Face Hub expects it."""


def file_of(path: str | Path) -> Path:
    """Return the file that is meant by a path: of a folder as for the Hub, the one in it."""
    found = Path(path)
    return found / IN_FOLDER if found.is_dir() else found


def read(path: Path) -> tuple[dict[str, str], Content]:
    """Read a file written by `save`, and check that it is whole.

    Returns:
        Its header, and what of it a model is compared with.

    Raises:
        PruneError: The file is missing, damaged, of a newer version, or not of branchprune.
    """
    header, state = read_tensors(path)
    return header, content_of(header, state, path)


def content_of(header: Mapping[str, str], state: dict[str, Any], path: Path) -> Content:
    """Return what a header says of a model.

    Args:
        header: The header.
        state: The tensors, or what stands for them.
        path: The file, for messages.

    Raises:
        PruneError: The header is damaged, of a newer version, or not of branchprune.
    """
    check_format(header, path)
    try:
        fields = {key: json.loads(header[key]) for key in AS_JSON if key in header}
    except (ValueError, RecursionError):
        raise PruneError(f"{path} is not complete: its header has no whole 'widths'") from None
    if "widths" not in fields:
        raise PruneError(f"{path} is not complete: its header has no 'widths'")
    for key, field in fields.items():
        if not CHECKS.get(key, _is_mapping)(field):
            raise PruneError(f"{path} is not complete: its header has damaged {key!r}")
    if not all(isinstance(each.get("class"), str) for each in fields.get("settings", {}).values()):
        raise PruneError(f"{path} is not complete: its header has damaged 'settings'")
    return Content(state, kind=header.get("class"), **fields)


def read_header(path: Path) -> dict[str, str]:
    """Return the header of a safetensors file; it is not checked.

    Raises:
        PruneError: The file is missing or damaged.
    """
    with opened(path) as file:
        header: dict[str, str] = file.metadata() or {}
    return header


def check_format(header: Mapping[str, str], path: Path) -> None:
    """Raise PruneError for a file that `save` has not written, or that of a newer version has."""
    found = header.get("format", "")
    if found in (FORMAT, EARLIER):
        return
    if OURS.fullmatch(found):
        raise PruneError(
            f"{path} is of a newer version of branchprune: its format is {found!r}, and this one "
            f"({__version__}) reads up to {FORMAT!r}: pip install --upgrade branchprune"
        )
    raise PruneError(f"{path} was not written by branchprune: its header lacks {FORMAT!r}")


def _is_mapping(value: Any, kind: type = dict) -> bool:
    """Return whether a value is a mapping whose values are of a kind."""
    return isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())


def _is_shapes(value: Any) -> bool:
    """Return whether a value is a mapping whose values are lists of whole numbers."""
    return _is_mapping(value, list) and all(type(n) is int for each in value.values() for n in each)


def _are_shortcuts(value: Any) -> bool:
    """Return whether a value is a mapping whose values are activations that can follow a sum."""
    return _is_mapping(value, str) and {*value.values()} <= {*ACTIVATIONS}


CHECKS: dict[str, Callable[[Any], bool]] = {"full": _is_shapes, "shortcuts": _are_shortcuts}
"""Whether a field is whole, of those that are not dictionaries of dictionaries."""


def was_saved(path: Path) -> bool:
    """Return whether `save` wrote a file, of any version; another may be of any kind.

    Raises:
        PruneError: The file ends in .safetensors, and is none.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return OURS.fullmatch(read_header(path).get("format", "")) is not None


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header and the tensors of any safetensors file; check one of `save` to be whole.

    Raises:
        PruneError: The file is missing or damaged.
    """
    with opened(path) as file:
        header: dict[str, str] = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_whole(header, path)
    return header, state


def check_whole(header: Mapping[str, str], path: Path) -> None:
    """Raise PruneError for a file of `save` that is not as it was written."""
    stamped = header.get("format") == FORMAT
    if stamped and not checksum.is_whole(path, header.get(checksum.KEY, "")):
        raise PruneError(f"{path} is damaged: its checksum is not that of its content")

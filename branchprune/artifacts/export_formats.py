"""The formats that models are exported to, by name and by how names of files end."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from branchprune.artifacts.executorch_file import EXECUTORCH
from branchprune.artifacts.exported_program import TORCH_EXPORT
from branchprune.artifacts.file_format import HALF, INT8, FileFormat
from branchprune.artifacts.onnx_file import ONNX
from branchprune.artifacts.openvino_file import OPENVINO
from branchprune.errors import PruneError

FORMATS = {each.name: each for each in (ONNX, OPENVINO, TORCH_EXPORT, EXECUTORCH)}
SUFFIXES = {each.suffix: each for each in FORMATS.values()}
COLUMNS = ("format", "suffix", "extra to install", "runtime", "fp16", "INT8", "dynamic batch")


def format_named(name: str) -> FileFormat:
    """Return a format by its name.

    Raises:
        PruneError: There is none of that name; the known ones are listed.
    """
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    called = {name: name for name in FORMATS} | {s[1:]: f.name for s, f in SUFFIXES.items()}
    near = get_close_matches(str(name).lstrip("."), called, 1, 0.0)
    nearest = f"; the nearest is {called[near[0]]!r}" if near else ""
    raise PruneError(f"format (={name!r}) must be one of {', '.join(FORMATS)}{nearest}")


def format_of(path: Path, name: str | None, argument: str = "path") -> FileFormat:
    """Return the format of a file.

    Args:
        path: The file.
        name: The format, if the user says which.
        argument: What the user gave the file as.

    Raises:
        PruneError: There is no such format, or the file's name ends as of another.
    """
    if name is not None:
        found = format_named(name)
        if path.suffix == found.suffix:
            return found
        raise PruneError(
            f"{argument} (={str(path)!r}) must end in {found.suffix}, as format is {name!r}"
        )
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    known = ", ".join(f"{suffix} ({each.name})" for suffix, each in SUFFIXES.items())
    near = get_close_matches(path.suffix, SUFFIXES, 1)
    nearest = f"; the nearest is {near[0]}" if near else ""
    raise PruneError(f"{argument} (={str(path)!r}) must end in one of {known}{nearest}")


def table() -> str:
    """Return a table of all formats as text."""
    extras = [f"branchprune[{each.extra}]" if each.extra else "–" for each in FORMATS.values()]
    rows = [
        (
            *(each.name, each.suffix, extra, each.runs_in),
            *("yes" if bits in each.bits else "–" for bits in (HALF, INT8)),
            f"up to {each.largest}" if each.largest else "yes",
        )
        for each, extra in zip(FORMATS.values(), extras, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (COLUMNS, *rows)
    ]
    return "\n".join(lines)

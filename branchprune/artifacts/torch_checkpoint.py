"""What a file of torch.save holds, and whether it is whole, which torch.load does not look at."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from branchprune.errors import first_line

PATH = re.compile(r"[\w.]+:[\w.]+", re.ASCII)
"""An import path; what a stranger's pickle says may be anything, and is printed."""
START = b"PK\x03\x04"
BEFORE_1_6 = b"\x80"
"""Start of a pickle, as which torch wrote before it wrote zip files."""


def is_zip(path: Path) -> bool:
    """Return whether a file begins as those of torch.save do since torch 1.6."""
    with path.open("rb") as file:
        return file.read(len(START)) == START


def begins_as_none(path: Path) -> bool:
    """Return whether a file begins as none of torch.save does, now or before torch 1.6."""
    with path.open("rb") as file:
        return not file.read(len(START)).startswith((START, BEFORE_1_6))


def damage(path: Path) -> str | None:
    """Return what is wrong with the records of a zip file of torch.save; None if nothing is.

    A file of another kind, such as of torch before 1.6, has no checksums: nothing is wrong with it.
    No code in the file is executed.
    """
    if not is_zip(path):
        return None
    try:
        with ZipFile(path) as records:
            torn = records.testzip()
            if torn is not None:
                return f"the checksum of {torn} is not that of its content"
            return next(_wrong_sizes(records), None)
    except Exception as error:  # of many kinds, in a torn file
        return first_line(error)


def not_weights(path: Path) -> str | None:
    """Return what a file of torch holds in place of weights, and how to get them out of it.

    No code in the file is executed.

    Args:
        path: A file of torch.save, torch.jit.save or torch.export.save.

    Returns:
        A part of a message; None: it holds weights, or what it holds cannot be seen.
    """
    if not is_zip(path):
        return None
    try:
        with ZipFile(path) as records:
            return _program(path, records.namelist()) or _module(path, records)
    except Exception:  # of many kinds, in a torn file: whoever reads it says so
        return None


def _program(path: Path, names: list[str]) -> str | None:
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inner) and "constants.pkl" in inner:
        what, state = "a TorchScript program", f"torch.jit.load({str(path)!r}).state_dict()"
    elif "models/model.json" in inner or "serialized_exported_program.json" in names:
        what, state = "an exported program", f"torch.export.load({str(path)!r}).state_dict"
    else:
        return None
    return (
        f"{what}, whose layers cannot be changed: name the model that it was made of, and give its "
        f"weights, torch.save({state}, 'weights.pt'), by --checkpoint weights.pt"
    )


def _module(path: Path, records: ZipFile) -> str | None:
    [pickled] = [name for name in records.namelist() if name.rpartition("/")[2] == "data.pkl"]
    with records.open(pickled) as file:
        held: Any = _Sizes(file).load()
    entries = {"": held} | (held if isinstance(held, dict) else {})
    found = next((key for key, value in entries.items() if _is_module(value)), None)
    if found is None:
        return None
    loaded = f"torch.load({str(path)!r}, weights_only=False)" + f"[{found!r}]" * bool(found)
    model = f"{entries[found].module}:{entries[found].name}"
    return (
        "a whole model as a pickle, which could run code and is refused: where you trust it, write "
        f"torch.save({loaded}.state_dict(), 'weights.pt') in Python, and give what makes a "
        f"{model if PATH.fullmatch(model) else 'model of its class'}, such as the function that "
        "it was made by (torchvision.models.resnet18), --checkpoint weights.pt"
    )


def _is_module(value: Any) -> bool:
    return isinstance(value, _Inert) and "_modules" in value.state


def _wrong_sizes(records: ZipFile) -> Iterator[str]:
    """Yield the records that are not as long as the pickle says that they are."""
    for name in records.namelist():
        folder, _, last = name.rpartition("/")
        if last != "data.pkl":
            continue
        sizes = {f"{folder}/data/{key}": size for key, size in _Sizes.of(records, name).items()}
        held = {info.filename: info.file_size for info in records.infolist()}
        for record, size in sizes.items():
            if held.get(record) != size:
                yield f"{record} holds {held.get(record)} bytes, and not {size}"


class _Inert(dict[Any, Any]):
    """Stands for anything that a pickle makes."""

    module = name = ""
    state: Any = ()

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep what an object of its class would have taken."""
        self.state = state if isinstance(state, dict) else ()

    def append(self, _: Any) -> None:
        """Take no entry."""

    def extend(self, _: Any) -> None:
        """Take no entries."""

    add = append


class _Sizes(pickle.Unpickler):
    """Goes through a pickle, makes nothing of it, and notes how long each storage is said to be."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    @classmethod
    def of(cls, records: ZipFile, name: str) -> dict[str, int]:
        """Return the bytes of each storage by its key."""
        with records.open(name) as file:
            reader = cls(file)
            reader.load()
        return reader.sizes

    def find_class(self, module: str, name: str) -> Any:
        """Return an empty class instead of what is asked for."""
        return type(name, (_Inert,), {"name": name, "module": module})

    def persistent_load(self, pid: Any) -> Any:
        """Note the size of a storage."""
        _, kind, key, _, count = pid
        size = 1 if kind.name == "UntypedStorage" else getattr(torch, kind.name)._dtype.itemsize
        self.sizes[str(key)] = int(count) * size
        return _Inert()

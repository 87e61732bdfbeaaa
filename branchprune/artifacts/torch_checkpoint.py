"""Whether a file of torch.save is whole: torch.load compares neither checksums nor sizes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from branchprune.errors import first_line

START = b"PK\x03\x04"


def is_zip(path: Path) -> bool:
    """Return whether a file begins as those of torch.save do since torch 1.6."""
    with path.open("rb") as file:
        return file.read(len(START)) == START


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

    name = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Take no state."""

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
        return type(name, (_Inert,), {"name": name})

    def persistent_load(self, pid: Any) -> Any:
        """Note the size of a storage."""
        _, kind, key, _, count = pid
        size = 1 if kind.name == "UntypedStorage" else getattr(torch, kind.name)._dtype.itemsize
        self.sizes[str(key)] = int(count) * size
        return _Inert()

"""A checksum in the header of a safetensors file, over all of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

KEY = "digest"
EMPTY = "0" * 32
"""What stands for the checksum while it is computed: BLAKE2b, 16 bytes in hexadecimal digits."""
LENGTH = 8
"""Bytes that say how long the header is; it follows."""
CHUNK = 1 << 22


def stamp(path: Path) -> None:
    """Put the checksum of a file that was written with `EMPTY` under `KEY` into its header.

    Raises:
        OSError: The file cannot be written.
    """
    header = _header(path)
    digest = _digest(path, header)
    with path.open("r+b") as file:
        file.seek(LENGTH + header.index(_field(EMPTY)))
        file.write(_field(digest))


def is_whole(path: Path, digest: str) -> bool:
    """Return whether a file is as it was when it got its checksum.

    Args:
        path: The file.
        digest: What its header says.
    """
    header = _header(path).replace(_field(digest), _field(EMPTY), 1)
    return len(digest) == len(EMPTY) and _digest(path, header) == digest


def _field(digest: str) -> bytes:
    return f'"{KEY}":"{digest}"'.encode()


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(LENGTH), "little"))


def _digest(path: Path, header: bytes) -> str:
    """Return the checksum of a file with another header of the same length."""
    found = hashlib.blake2b(header, digest_size=len(EMPTY) // 2)
    with path.open("rb") as file:
        found.update(file.read(LENGTH))
        file.seek(len(header), 1)
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()

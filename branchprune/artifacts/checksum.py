"""A checksum in the header of a safetensors file, over all of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

KEY = "digest"
EMPTY = "0" * 32
"""What stands for the checksum while it is computed: BLAKE2b, 16 bytes in hexadecimal digits."""
CHUNK = 1 << 22


def stamp(path: Path) -> None:
    """Put the checksum of a file that was written with `EMPTY` under `KEY` into its header.

    Raises:
        OSError: The file cannot be written.
    """
    start, header = _header(path)
    place = start + header.index(_field(EMPTY)) + len(_field(""))
    digest = _digest(path, header)
    with path.open("r+b") as file:
        file.seek(place - 1)
        file.write(digest.encode())


def is_whole(path: Path, digest: str) -> bool:
    """Return whether a file is as it was when it got its checksum.

    Args:
        path: The file.
        digest: What its header says.
    """
    _, header = _header(path)
    found = header.replace(_field(digest), _field(EMPTY), 1)
    return len(digest) == len(EMPTY) and _digest(path, found) == digest


def _field(digest: str) -> bytes:
    return f'"{KEY}":"{digest}"'.encode()


def _header(path: Path) -> tuple[int, bytes]:
    """Return where the header begins, and the header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8, file.read(size)


def _digest(path: Path, header: bytes) -> str:
    """Return the checksum of a file with another header of the same length."""
    found = hashlib.blake2b(header, digest_size=len(EMPTY) // 2)
    with path.open("rb") as file:
        found.update(file.read(8))
        file.seek(len(header), 1)
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()

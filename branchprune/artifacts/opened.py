"""A safetensors file that is open: what is wrong with one is told in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from branchprune.errors import PruneError


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file for a `with` block.

    Args:
        path: The file.

    Raises:
        PruneError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise PruneError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        start = path.read_bytes()[:4] if path.is_file() else b""
        pickled = start[:1] == b"\x80" or start == b"PK\x03\x04"
        hint = "it is a pickle, which could run code and is refused" if pickled else str(error)
        raise PruneError(f"{path} is not a complete safetensors file: {hint}") from error

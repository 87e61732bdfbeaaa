"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from branchprune.errors import Failed


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Return where to write a file, for a `with` block at whose end it gets its name.

    Args:
        path: The file; one that is there is replaced.

    Raises:
        PruneError: It cannot be written; what was there stays.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failed(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as a file, in UTF-8.

    Args:
        path: The file; one that is there is replaced.
        text: What it is to hold.

    Raises:
        PruneError: It cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")

"""Texts: those of a stranger's file made harmless, and files of them written whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from branchprune.errors import Failed


def plain(text: str) -> str:
    """Return a text in a line, without what would move the cursor or begin a tag of HTML."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("<", "\u2039")


def in_code(text: str) -> str:
    """Return a text as code in Markdown."""
    return f"`{plain(text).replace('`', chr(39))}`"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; one that is there is replaced.

    Raises:
        PruneError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)

"""Texts of a stranger's file, made harmless."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return a text in a line, without what would move the cursor or begin a tag of HTML."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("<", "\u2039")


def in_code(text: str) -> str:
    """Return a text as code in Markdown."""
    return f"`{plain(text).replace('`', chr(39))}`"

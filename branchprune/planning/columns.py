"""Rows of text in columns, as a plan and the tree of its modules are printed."""

from __future__ import annotations

from collections.abc import Sequence


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line a row, with a line under the first.

    Args:
        rows: Cells of each row, of the names of the columns first; the last may be long.
    """
    lengths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(c.ljust(n) for c, n in zip(row, [*lengths, 0], strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * n for n in [*lengths, len(rows[0][-1])]))
    return lines

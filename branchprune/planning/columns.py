"""Rows of text in columns, as a plan and the tree of its modules are printed."""

from __future__ import annotations

from collections.abc import Sequence


def in_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return one line a row, with a line under the first, which names the columns.

    Args:
        rows: Cells of each row; the last column may be as long as it likes.
        right: Columns that end in line, such as numbers.
    """
    lengths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [*lengths[:-1], 0 if len(rows[0]) - 1 not in right else lengths[-1]]
    lines = [
        "  ".join(
            cell.rjust(n) if i in right else cell.ljust(n)
            for i, (cell, n) in enumerate(zip(row, padded, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * n for n in [*lengths[:-1], len(rows[0][-1])]))
    return lines

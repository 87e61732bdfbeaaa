"""Parts of Markdown pages that tables of results are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOTHING = "–"


def markdown_table(lines: Sequence[Sequence[str]], align: str | None = None) -> str:
    """Return lines of cells, the first of them the header, as a Markdown table.

    Args:
        lines: Cells; a vertical bar in one is escaped.
        align: A letter a column, "l" or "r"; None: the first column left, all others right.
    """
    align = "l" + "r" * (len(lines[0]) - 1) if align is None else align
    rule = [{"l": "---", "r": "---:"}[letter] for letter in align]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (lines[0], rule, *lines[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def folded(summary: str, content: str) -> str:
    """Return Markdown that is shown at a click on its summary."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def commands(runs: Iterable[tuple[str, Mapping[str, Any], str]]) -> str:
    """Return commands, folded away: what makes a run today, below what it was made with.

    Args:
        runs: For each run what it is called, its line of results, and the command of today. Of
            the line only the command is needed, and shown is the commit if it has one.
    """
    shown = ""
    for name, line, today in runs:
        commit = f" at commit {line['commit']}" if "commit" in line else ""
        shown += f"# {name}; made{commit} by\n#   {line['command']}\n{today}\n"
    return folded("Commands", f"```sh\n{shown}```")


def distinct(values: Iterable[str | None]) -> str:
    """Return the different values of some results, such as commits, in words."""
    return " and ".join(dict.fromkeys(value for value in values if value is not None)) or NOTHING

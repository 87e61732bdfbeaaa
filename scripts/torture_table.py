"""The table of `torture.py`, from its result lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torture_trial import HOW

from branchprune.experiments.markdown import markdown_table


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return what became of each attack, as Markdown; the last line of an attack counts."""
    last = {line["attack"]: line for line in lines}
    rows = [["attack", "tried", "survived", "refused clearly", "wrong", "command", "commit"]]
    for name, line in last.items():
        numbers = [line["tried"], *(line[how] for how in HOW)]
        rows.append([name, *map(str, numbers), f"`{line['command']}`", str(line["commit"])])
    return markdown_table(rows, "lrrrrll")

"""Rows of a result that is one JSON file, written one by one, each with the commit that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import branchprune as bp
from branchprune.experiments import environment
from branchprune.experiments.files import write_whole


class Written(Protocol):
    """Options of a script that say where its result is written."""

    output: Path | None
    record: bool


class RecordedRows:
    """Rows of a file; those that are there already stay, unless they are measured again.

    Args:
        name: Name of the file in the committed results.
        options: Those of the script: with `record` that file is written, else `output`, if any.
        fixed: Names of those that are the same for all rows.
        keys: Of each row, what tells it from others.

    Raises:
        PruneError: The file holds rows of other options, or the current folder is no checkout.
    """

    def __init__(
        self, name: str, options: Written, fixed: Sequence[str], keys: Sequence[str]
    ) -> None:
        self.path = environment.recorded(name) if options.record else options.output
        self.options, self.keys = {key: getattr(options, key) for key in fixed}, keys
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            found = json.loads(self.path.read_text())
            if found["options"] != self.options:
                raise bp.PruneError(
                    f"{self.path} holds rows of other options ({found['options']}, now "
                    f"{self.options}): remove it, or give another --output"
                )
            self.rows = {self._key(row): row for row in found["rows"]}

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self.rows[self._key(row)] = {
            **row,
            "commit": environment.commit(),
            "hardware": environment.hardware(),
            "torch": environment.versions()["torch"],
        }
        if self.path is not None:
            content = {"options": self.options, "rows": [*self.rows.values()]}
            write_whole(self.path, json.dumps(content, indent=1) + "\n")

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in self.keys)


def made(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what rows were made with: hardware, torch and commits."""
    found = [" and ".join(sorted({str(row[key]) for row in rows})) for key in ("hardware", "torch")]
    commits = " and ".join(dict.fromkeys(str(row["commit"]) for row in rows))
    return f"{found[0]}, torch {found[1]}, commit {commits}"

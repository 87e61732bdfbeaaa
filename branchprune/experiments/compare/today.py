"""Whether results and folders are of today's configuration, or of an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from branchprune.experiments.run.config import stored_text
from branchprune.experiments.run.configuration_digest import digest, settings_of


class Today:
    """Compares what earlier calls have left with what runs would do today.

    Args:
        say: Called with each difference, once.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.told = set[str]()
        self.texts: dict[tuple[str, ...], str] = {}

    def has_made(
        self,
        line: Mapping[str, Any],
        name: str,
        arguments: Callable[[], list[str]],
        otherwise: str,
    ) -> bool:
        """Return whether a line of results is of today's configuration, or does not say.

        Args:
            line: The line.
            name: Name of the run.
            arguments: Returns the arguments of `branchprune run` that make the run today.
            otherwise: What is said to happen if it is of another one.
        """
        said = line.get("configuration")
        now = said if said is None else digest(self._text(arguments()))
        if now != said:
            self._tell(
                f"{name}: its line is of another configuration ({said}, today {now}): {otherwise}"
            )
        return now == said

    def differs(self, folder: Path, arguments: list[str], sections: Sequence[str] = ()) -> bool:
        """Return whether a run in a folder has other settings than today's; say which.

        Args:
            folder: The folder of the run; without a configuration there is no difference.
            arguments: Those of `branchprune run` today.
            sections: Sections of the configuration that count; empty: all.
        """
        stored = folder / "config.yaml"
        if not stored.is_file():
            return False
        texts = stored.read_text(encoding="utf-8"), self._text(arguments)
        before, now = (settings_of(text, sections) for text in texts)
        changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
        if changed:
            values = f"{before.get(changed[0])!r}, today {now.get(changed[0])!r}"
            self._tell(f"{folder} is of another configuration ({changed[0]} was {values})")
        return bool(changed)

    def how(self, folder: Path, arguments: list[str]) -> list[str]:
        """Return the options that go on with the run in a folder, or begin it anew."""
        if not self.differs(folder, arguments):
            return ["--resume"]
        self._tell(f"{folder} is kept as {folder.name}.previous, and its run begins anew")
        return ["--overwrite", "true"]

    def _text(self, arguments: list[str]) -> str:
        key = tuple(arguments)
        if key not in self.texts:
            self.texts[key] = stored_text(arguments)
        return self.texts[key]

    def _tell(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.say(text)

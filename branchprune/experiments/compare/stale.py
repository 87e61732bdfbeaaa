"""Which results and folders are stale: of another configuration than today's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from branchprune.experiments.run.config import stored_text
from branchprune.experiments.run.configuration_digest import changed_settings, digest, settings_of


class StaleCheck:
    """Compares the configurations that earlier calls have stored with today's.

    Args:
        say: Called with each difference, once.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.told = set[str]()
        self.texts: dict[tuple[str, ...], str] = {}
        self.digests: dict[tuple[str, ...], str] = {}

    def is_current(self, before: str, name: str, arguments: list[str], otherwise: str) -> bool:
        """Return whether a line of results is of today's configuration.

        Args:
            before: The digest of a configuration in the line.
            name: Name of the run.
            arguments: Those of `branchprune run` that make the run today.
            otherwise: What is said to happen if it is of another one.
        """
        key = tuple(arguments)
        if key not in self.digests:
            self.digests[key] = digest(self._text(arguments))
        now = self.digests[key]
        if now != before:
            self._tell(
                f"{name}: its line is of another configuration ({before}, today {now}): {otherwise}"
            )
        return now == before

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
        changed = changed_settings(before, now)
        if changed:
            values = f"{before.get(changed[0])!r}, today {now.get(changed[0])!r}"
            self._tell(f"{folder} is of another configuration ({changed[0]} was {values})")
        return bool(changed)

    def resume_options(
        self, folder: Path, arguments: list[str], sections: Sequence[str] = ()
    ) -> list[str]:
        """Return the options that go on with the run in a folder, or begin it anew.

        Args:
            folder: The folder of the run.
            arguments: Those of `branchprune run` today.
            sections: Sections of the configuration that count; empty: all.
        """
        if not self.differs(folder, arguments, sections):
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

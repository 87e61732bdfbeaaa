"""Configuration files that take another as their base, and that offer variants of themselves.

A file is a configuration with up to three keys more:

    base: other.yaml             # or a list: what this file is to change; a base has none itself
    rows: [cpu]                  # variants of the base that this file takes
    variants:                    # partial configurations by name: `--variant cpu`
      cpu: {dense: {epochs: 2}}
      frozen: {prune: {blend: {thaw_at: null}}}
      frozen + cpu: {dense: {epochs: 1}}     # added behind where both are chosen
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from branchprune.errors import PruneError
from branchprune.experiments.yaml_text import check_yaml

Settings = dict[str, Any]

COMPARISON = ("seeds", "budgets", "methods")
"""What a file of `branchprune compare` has beside what all its runs have in common."""
OF_COMPARISON = (*COMPARISON, "reference")
"""The same, and what it may have."""
OF_SEARCH = "search"
"""The section of `branchprune search`, which runs leave alone."""
JOINT = " + "


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Args:
        path: The file.
        content: What it says itself, without the keys of this module, of comparisons and searches.
        bases: Files that it changes.
        rows: Names of the variants of these that it takes.
        variants: Its own variants by name; "a + b" belongs to both.
        plain: Whether the content is all that is in the file.
    """

    path: Path
    content: Settings = field(default_factory=dict)
    bases: tuple[ConfigFile, ...] = ()
    rows: tuple[str, ...] = ()
    variants: dict[str, Settings] = field(default_factory=dict)
    plain: bool = True

    @property
    def names(self) -> list[str]:
        """Every variant that can be chosen, those of the bases first."""
        names = [name for file in self.family for name in file.variants if JOINT not in name]
        return [*dict.fromkeys(names)]

    @property
    def family(self) -> tuple[ConfigFile, ...]:
        """The bases and the file itself."""
        return (*self.bases, self)

    def layers(self, chosen: Sequence[str] = ()) -> list[Settings]:
        """Return what the file stands for: partial configurations, later ones override.

        Args:
            chosen: Names of variants to add, in their order; unknown ones add nothing.
        """
        layers: list[Settings] = []
        for base in self.bases:
            layers += [base.content, *base.own(self.rows)]
        layers.append(self.content)
        for name in chosen:
            layers += [file.variants[name] for file in self.family if name in file.variants]
        for file in self.family:
            before = () if file is self else self.rows
            layers += file.joint({*self.rows, *chosen}, before)
        return layers

    def parts(self) -> Iterator[tuple[str, Settings]]:
        """Yield every partial configuration of the file and its bases, behind its place."""
        for file in self.family:
            yield f"{file.path}: ", file.content
            for name, settings in file.variants.items():
                yield f"{file.path}: variants.{name}: ", settings

    def own(self, chosen: Sequence[str]) -> list[Settings]:
        """Return the file's own variants of some names, those that belong to several last."""
        rows = [self.variants[name] for name in chosen if name in self.variants]
        return [*rows, *self.joint(chosen)]

    def joint(self, chosen: Collection[str], before: Collection[str] = ()) -> list[Settings]:
        """Return the file's own variants "a + b" of which all parts are chosen.

        Args:
            chosen: Names.
            before: Names with which they have been taken already.
        """
        parts = {name: {*name.split(JOINT)} for name in self.variants if JOINT in name}
        return [
            self.variants[name]
            for name, all_of in parts.items()
            if all_of <= {*chosen} and not all_of <= {*before}
        ]


def read_file(path: Path) -> ConfigFile:
    """Read a configuration file.

    Args:
        path: A YAML file.

    Raises:
        PruneError: `base`, `rows` or `variants` is wrong; the file is named.
        OSError: The file cannot be read.
    """
    settings = read_settings(path)
    try:
        return _file(path, settings)
    except PruneError as error:
        raise PruneError(f"{path}: {error}") from error


def read_settings(path: Path) -> Settings:
    """Return all that is in a file; one without any key, such as of comments, changes nothing.

    Raises:
        PruneError: It is no YAML, or has no keys; the file is named.
        OSError: The file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise PruneError(f"{path}: a configuration must be a regular file")
    try:
        found = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except PruneError as error:
        raise PruneError(f"{path}: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise PruneError(f"{path}: no YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict | None):
        raise PruneError(
            f"{path}: a configuration has keys, as `name: value`, and this is {found!r:.40}"
        )
    return found or {}


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Return what a YAML text says; a command reads the same file for its keys and its values."""
    check_yaml(text)
    found = get_loader("yaml")(text)
    # It takes `key:` alone, without a value, for a text.
    return yaml.safe_load(text) if isinstance(found, str) else found


def _file(path: Path, settings: Settings) -> ConfigFile:
    own = ["base", "rows", "variants", OF_SEARCH]
    own += OF_COMPARISON if {*COMPARISON} <= {*settings} else []
    file = ConfigFile(
        path,
        content={key: value for key, value in settings.items() if key not in own},
        bases=_bases(settings.get("base", []), path.parent),
        rows=_rows(settings.get("rows", [])),
        variants=_variants(settings.get("variants", {})),
        plain=any(v is not None for v in settings.values()) and not {*own} & {*settings},
    )
    names = [name for base in file.bases for name in base.variants]
    for name in names:
        if names.count(name) > 1:
            raise PruneError(f"base has two files with the variant {name!r}: rename one")
    check(file.rows, file.bases, "rows")
    check([part for name in file.variants for part in name.split(JOINT)], [file], "variants")
    return file


def _bases(value: Any, folder: Path) -> tuple[ConfigFile, ...]:
    files = value if isinstance(value, list) else [value]
    if not all(isinstance(file, str) for file in files):
        raise PruneError(f"base (={value!r}) must be a file or a list of files")
    for file in files:
        if not (folder / file).is_file():
            raise PruneError(f"base (={file!r}) does not exist in {folder.absolute()}")
        if "base" in read_settings(folder / file):
            raise PruneError(
                f"base (={file!r}) has a base of its own, and a base has none: leave `base` out "
                f"here, and name {file} before this file on the command line"
            )
    return tuple(read_file(folder / file) for file in files)


def _rows(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PruneError(f"rows (={value!r}) must be a list of names")
    return tuple(value)


def _variants(value: Any) -> dict[str, Settings]:
    if not isinstance(value, dict):
        raise PruneError(f"variants (={value!r}) must be a mapping by name")
    for name, settings in value.items():
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise PruneError(
                f"variants.{name} (={settings!r}) must be a partial configuration, with a name"
            )
    return value


def check(names: Iterable[str], files: Sequence[ConfigFile], key: str) -> None:
    """Raise if none of some files has a variant.

    Args:
        names: Names of variants.
        files: The files.
        key: What the message calls the argument.

    Raises:
        PruneError: The unknown name, the nearest one, and all that are known.
    """
    known = [name for file in files for name in file.names]
    for name in names:
        if name in known:
            continue
        near = get_close_matches(name, known, 1)
        meant = f", perhaps {near[0]!r}" if near else ""
        have = f"known are {', '.join(dict.fromkeys(known))}" if known else "the file has none"
        raise PruneError(f"{key} (={name!r}) is no variant{meant}; {have}")

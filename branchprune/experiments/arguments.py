"""Arguments of commands that take YAML files, and variants that these offer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from branchprune.errors import PruneError
from branchprune.experiments.variants import check, read_file

FILE, VARIANT = "--config", "--variant"


def files_as_options(args: Sequence[str]) -> list[str]:
    """Return arguments in which all that files stand for is given by --config, for jsonargparse.

    A file is followed by those of its variants that are chosen, in the order in which they are, and
    then by the next file: later ones override.

    Args:
        args: As `["a.yaml", "b.yaml", "--variant", "cpu", "--seed", "1"]`.

    Raises:
        PruneError: A variant is in none of the files, or a file's base, rows or variants are wrong.
    """
    words = [*_words(args)]
    names = [text for option, text in words if option == VARIANT]
    paths = [text for option, text in words if option == FILE and _is_file(text)]
    files = {path: read_file(Path(path)) for path in paths}
    check(names, [*files.values()], VARIANT)
    options: list[str] = []
    for option, text in words:
        if option == FILE:
            file = files.get(text)
            own = [text] if file is None or file.plain else map(json.dumps, file.layers(names))
            options += [part for value in own for part in (FILE, value)]
        elif option != VARIANT:
            options.append(text)
    return options


def files_named(args: Sequence[str]) -> list[str]:
    """Return arguments in which files are values of --config, and variants still by name."""
    words = _words(args)
    return [part for option, text in words for part in ([option] if option else []) + [text]]


def _is_file(text: str) -> bool:
    """Return whether a value of --config is a file; it may be the text of a configuration, too."""
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name
        return False


def _words(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield files and variants with their option, and all else as it is, with none."""
    files = [*takewhile(lambda argument: not argument.startswith("-"), args)]
    yield from ((FILE, file) for file in files)
    rest = iter(args[len(files) :])
    for word in rest:
        option, given, value = word.partition("=")
        if option not in (FILE, VARIANT):
            yield "", word
            continue
        following = value if given else next(rest, None)
        if following is None:
            raise PruneError(f"{option} needs a value")
        yield option, following

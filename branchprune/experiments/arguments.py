"""Arguments of commands that take YAML files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def files_as_options(args: Sequence[str]) -> list[str]:
    """Return arguments in which the files that come first are values of --config.

    Args:
        args: As `["a.yaml", "b.yaml", "--seed", "1"]`.
    """
    files = list(takewhile(lambda argument: not argument.startswith("-"), args))
    return [*(part for file in files for part in ("--config", file)), *args[len(files) :]]

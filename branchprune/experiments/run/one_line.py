"""An error of code that is not ours, such as a user's model, said in one line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from branchprune.errors import PruneError

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def said(error: BaseException) -> str:
    """Return what an error says: its kind, its first line, and where code that is no library is."""
    text = " ".join(str(error).split())
    if isinstance(error, PruneError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{text and f': {text:.400}'}{place}"


@contextmanager
def told_in_one_line(what: str) -> Iterator[None]:
    """Turn any error in a `with` block into one that says what was tried.

    Args:
        what: Such as "data".

    Raises:
        PruneError: There was an error.
    """
    try:
        yield
    except PruneError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise PruneError(f"{what}: {said(error)}") from error

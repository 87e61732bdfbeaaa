"""Files that cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from branchprune.errors import PruneError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that say of themselves that a file could not be written."""


@contextmanager
def unwritable_named(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk in a `with` block into one that names the file.

    Args:
        folder: Named where the error does not say which file it was.

    Raises:
        PruneError: Something could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        path = getattr(error, "filename", None) or f"output folder {folder}"
        reason = getattr(error, "strerror", None) or error
        raise PruneError(
            f"{path} cannot be written: {reason}; what was written before is kept "
            "(--resume continues)"
        ) from error

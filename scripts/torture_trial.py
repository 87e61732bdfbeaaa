"""What became of one attack of `torture.py`."""

from __future__ import annotations

from dataclasses import dataclass

HOW = ("survived", "refused", "wrong")


@dataclass(frozen=True)
class Trial:
    """What became of one attack.

    Args:
        how: One of `HOW`; "refused" is in one clear line.
        what: What was done, and what went wrong.
    """

    how: str
    what: str = ""


def is_clear(complaint: str) -> bool:
    """Return whether a complaint is one line of ours."""
    return complaint.startswith("branchprune: error: ") and "\n" not in complaint

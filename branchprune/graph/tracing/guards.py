"""Guards: a recorded forward is refused what would take another way through the user's.

A recording holds one way through forward. Where an `if` asks for shapes, the way of the example is
recorded, together with a guard: an input that would take the other one is refused. The same goes
for a size that forward turns into a plain number, as by `int(x.shape[2] / 2)`.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterable, Sized
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from branchprune.errors import PruneError

_PACKAGE = Path(__file__).parents[2]
MACHINERY = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, _PACKAGE))
"""Folders whose code is not a user's."""


def same_branch(condition: Any, expected: bool, what: str, place: str) -> None:
    """Refuse an input for which forward would take another branch than for the example.

    Raises:
        PruneError: The condition is not what it was.
    """
    if bool(condition) != expected:
        raise PruneError(
            f"forward takes another branch than for the plan's example at {what}{place}: plan with "
            "an example of the shape that is used, or move the condition out of forward"
        )


def same_number(number: Any, expected: float, what: str, place: str) -> None:
    """Refuse an input for which a number in forward is another than for the example.

    Raises:
        PruneError: The number is not what it was.
    """
    if number != expected:
        raise PruneError(
            f"forward computes {number} from a shape, which was {expected} for the plan's example, "
            f"at {what}{place}: plan with an example of the shape that is used, or leave out int()"
        )


def same_length(parts: Sized, expected: int, what: str, place: str) -> None:
    """Refuse an input for which forward works on more or fewer tensors than for the example.

    Raises:
        PruneError: Their number is not what it was.
    """
    if len(parts) != expected:
        raise PruneError(
            f"forward has {len(parts)} tensors, which were {expected} for the plan's example, at "
            f"{what}{place}: plan with an example of the shape that is used"
        )


GUARDS = (same_branch, same_number, same_length)


def user_frame() -> FrameType | None:
    """Return the frame of the user's code that runs now."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(MACHINERY):
        frame = frame.f_back  # type: ignore[assignment]
    return frame


def user_line() -> tuple[str, int] | None:
    """Return the file and the number of the line of the user's code that runs now."""
    frame = user_frame()
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def user_code() -> tuple[int, CodeType] | None:
    """Return which call of which of the user's functions runs now."""
    frame = user_frame()
    return None if frame is None else (id(frame), frame.f_code)


def source_line() -> tuple[str, str]:
    """Return the line of a user's forward that runs, and where it is."""
    frame = user_frame()
    if frame is None:
        return "", ""
    file, number = frame.f_code.co_filename, frame.f_lineno
    return f"`{linecache.getline(file, number).strip()}`", f" ({file}:{number})"


def is_named(dtype: torch.dtype) -> bool:
    """Return whether the user's code that runs names a dtype, as `x.to(torch.float32)` does."""
    frame = user_frame()
    if frame is None:
        return True
    positions = [*frame.f_code.co_positions()][frame.f_lasti // 2]
    first, last = positions[0] or frame.f_lineno, positions[1] or frame.f_lineno
    lines = [linecache.getline(frame.f_code.co_filename, i) for i in range(first, last + 1)]
    words = re.findall(r"[a-zA-Z]\w*", "".join(lines))
    return any(getattr(torch, word, None) is dtype for word in words)


def same_modes(model: nn.Module, names: Iterable[str], training: bool) -> None:
    """Raise a PruneError for a module in another mode than the whole.

    Args:
        model: The model.
        names: The modules whose forward was traced differently in the two modes.
        training: The mode of the whole.
    """
    for name in names:
        if model.get_submodule(name).training != training:
            raise PruneError(
                f"{name} is in {'evaluation' if training else 'training'} mode and the model "
                f"around it is not, but its forward, which was traced, depends on the mode of "
                "the whole: leave it out with `opaque`, or use nn.Dropout for F.dropout"
            )


def as_many_arguments(given: int, planned: int) -> None:
    """Raise a PruneError if forward is given more or fewer arguments than in the plan's example."""
    if given != planned:
        raise PruneError(
            f"forward is given {given} arguments, but the plan's example had {planned}: plan "
            "with an example that has the arguments that are used"
        )

"""One thread at a time: a trace replaces parts of torch, and a check puts generators back.

What a trace cannot follow is off meanwhile: the fast path of attention, and inference mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from branchprune.graph.fast_path import without_fast_path
from branchprune.graph.inference_mode import outside_inference_mode

P = ParamSpec("P")
R = TypeVar("R")
_LOCK = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function wait while another thread is in one of those that are marked so.

    Attention is computed in it as it is traced, and tensors are ordinary ones.
    """

    @wraps(function)
    def wait(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK, without_fast_path(), outside_inference_mode():
            return function(*args, **kwargs)

    return wait

"""Random numbers that do not depend on the order in which they are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DrawsAlike(TorchDispatchMode):
    """Lets every random operation draw what it would draw first, for a `with` block.

    Two models that compute the same, one of which draws numbers that nothing reads, then have the
    same outputs. The generators' states are to be kept by the caller.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))

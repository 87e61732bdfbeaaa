"""Whether forward asks for the mode or sets it: else it is recorded once and not twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn

from branchprune.graph.tracing.run_whole import LIBRARY


@contextmanager
def mode_reads(is_meant: Callable[[], bool]) -> Iterator[list[nn.Module]]:
    """Note of which modules `training` is read or set, for a `with` block.

    Args:
        is_meant: Whether it counts now.

    Yields:
        The modules; it fills while forward runs.
    """
    asked: list[nn.Module] = []

    def read(module: nn.Module) -> Any:
        if is_meant():
            asked.append(module)
        if "training" not in vars(module):
            raise AttributeError("training")  # a ScriptModule keeps it elsewhere
        return vars(module)["training"]

    def write(module: nn.Module, value: bool) -> None:
        if is_meant():
            asked.append(module)
        vars(module)["training"] = value

    with mock.patch.object(nn.Module, "training", property(read, write), create=True):
        yield asked


def follows_mode(part: nn.Module, wholes: Collection[nn.Module]) -> bool:
    """Return whether the mode may matter although forward does not ask for it.

    Args:
        part: The module that is recorded.
        wholes: Modules that are not looked into; those of torch are run in one mode.
    """
    overrides = (type(m).train is not nn.Module.train or "train" in vars(m) for m in part.modules())
    return any(overrides) or not all(m.__module__.startswith(LIBRARY) for m in wholes)

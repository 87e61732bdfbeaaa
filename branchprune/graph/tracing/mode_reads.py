"""Whether forward asks for the mode or sets it: else it is recorded once and not twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any
from unittest import mock

from torch import nn

from branchprune.graph.mode_swaps import sets_mode_itself
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
    modules = [*part.modules()]
    if any(map(sets_mode_itself, modules)) or any(map(_hides_mode, {*map(type, modules)})):
        return True
    return not all(m.__module__.startswith(LIBRARY) for m in wholes)


@lru_cache(maxsize=1024)
def _hides_mode(kind: type[nn.Module]) -> bool:
    """Return whether a user's class may learn the mode without asking for the attribute.

    It may see how attributes are set or read, or find the mode by its name in a dictionary.
    """
    own = [each for each in kind.__mro__ if not each.__module__.startswith("torch.")]
    names = [vars(each) for each in own if each is not object]
    seen = any({"training", "__setattr__", "__getattribute__"} & {*each} for each in names)
    codes = (getattr(value, "__code__", None) for each in names for value in each.values())
    return seen or any(map(_names_mode, codes))


def _names_mode(code: object) -> bool:
    """Return whether "training" stands in the code of a function, or of one within."""
    constants = code.co_consts if isinstance(code, CodeType) else ()
    return "training" in constants or any(map(_names_mode, constants))

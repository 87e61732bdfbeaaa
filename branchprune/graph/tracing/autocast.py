"""Regions of `torch.autocast` that forward enters while it is recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch

from branchprune.graph.autocast import Region
from branchprune.graph.tracing.measurements import ValuesNeeded
from branchprune.graph.tracing.recorder import Recorder

_SIGNATURE = inspect.signature(torch.autocast.__init__)


@contextmanager
def autocast_followed(recorder: Recorder, ignored: Callable[[], bool]) -> Iterator[None]:
    """Note the regions that forward enters, for a `with` block.

    In a region tensors have other types, which only a forward with numbers tells.

    Args:
        recorder: Where they are noted.
        ignored: Whether what runs now is not recorded.
    """
    given: WeakKeyDictionary[torch.autocast, Region] = WeakKeyDictionary()
    make, enter, leave = _originals()

    def made(context: torch.autocast, *args: Any, **kwargs: Any) -> None:
        make(context, *args, **kwargs)
        if not ignored():
            given[context] = _as_given(context, *args, **kwargs)

    def entered(context: torch.autocast) -> Any:
        if not ignored():
            if recorder.meta:
                raise ValuesNeeded
            recorder.regions.append(given.get(context) or _resolved(context))
        return enter(context)

    def left(context: torch.autocast, *args: Any) -> Any:
        if not ignored():
            recorder.regions.pop()
        return leave(context, *args)

    hooks: dict[str, Any] = {"__init__": made, "__enter__": entered, "__exit__": left}
    with mock.patch.multiple(torch.autocast, **hooks):
        yield


def _originals() -> tuple[Callable[..., Any], ...]:
    kind = torch.autocast
    return kind.__init__, kind.__enter__, kind.__exit__


def _as_given(context: torch.autocast, *args: Any, **kwargs: Any) -> Region:
    """Return a region that forward makes, of whose arguments some may follow what is around it."""
    bound = _SIGNATURE.bind(context, *args, **kwargs)
    bound.apply_defaults()
    rest = (bound.arguments[name] for name in ("dtype", "enabled", "cache_enabled"))
    return Region(str(bound.arguments["device_type"]), *rest)


def _resolved(context: torch.autocast) -> Region:
    """Return a region that was made before, as by a decorator, which follows nothing any more."""
    state = vars(context)
    return Region(context.device, context.fast_dtype, state["_enabled"], state["_cache_enabled"])

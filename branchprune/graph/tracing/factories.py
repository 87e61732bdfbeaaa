"""Recording tensors that forward makes from sizes, such as `torch.zeros(len(x), n)`.

`torch.fx` sees operations on its proxies, but these functions take numbers only and fail on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

FACTORIES = (
    *("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace"),
    *("rand", "randn", "randint", "randperm", "tril_indices", "triu_indices"),
)


@contextmanager
def recorded_factories() -> Iterator[None]:
    """Let a trace record the functions in torch that make tensors, for a `with` block."""
    with ExitStack() as stack:
        for name in FACTORIES:
            function = getattr(torch, name)
            stack.enter_context(mock.patch.object(torch, name, _recorded(function)))
        yield


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        proxy = next((leaf for leaf in leaves if isinstance(leaf, fx.Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call

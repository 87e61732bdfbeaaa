"""Outputs of modules, seen by hooks as a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show every output of some modules to a function, for a `with` block.

    Args:
        modules: The modules by name.
        see: Called with the name and the output.
    """

    def hook(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        see(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


def takes_hooks(module: nn.Module) -> bool:
    """Return whether a module and all in it can be given hooks."""
    return not any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())

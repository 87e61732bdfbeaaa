"""The last training inputs of a blended model, from which BatchNorm can take its statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from branchprune.blending.blended import Blended
from branchprune.graph.inputs import Example


class RecentInputs:
    """Remembers with what a blended model was called last in training.

    Args:
        count: How many calls to remember.
    """

    def __init__(self, count: int) -> None:
        self.inputs: deque[Example] = deque(maxlen=count)
        self.hook: RemovableHandle | None = None

    def watch(self, blended: Blended) -> None:
        """Begin to remember."""
        inputs = self.inputs

        # A plain function: a bound method would make deepcopy of the model copy the trainer too.
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(module, Blended) and module.training and torch.is_grad_enabled():
                inputs.append(_named(module.model, args, kwargs) if kwargs else args)

        self.hook = blended.register_forward_pre_hook(remember, with_kwargs=True)

    def stop(self) -> None:
        """Remember no more, and forget."""
        if self.hook is not None:
            self.hook.remove()
        self.forget()

    def forget(self) -> None:
        """Forget what was remembered."""
        self.inputs.clear()

    def __iter__(self) -> Iterator[Example]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of forward, all by name."""
    bound = signature(model.forward).bind(*args, **kwargs)
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named

"""The last training inputs of a blended model, from which BatchNorm can take its statistics.

The statistics are those of the weights at validation, so the inputs have to wait for it. They wait
in the host's memory, and only those of the last batches before a validation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from inspect import Parameter, signature
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
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
        self.count = count
        self.hook: RemovableHandle | None = None

    def watch(self, blended: Blended, trainer: Trainer | None = None) -> None:
        """Begin to remember.

        Args:
            blended: The blended model.
            trainer: What trains it; None: every call may be one of the last.
        """
        inputs, count = self.inputs, self.count

        # A plain function: a bound method would make deepcopy of the model copy the trainer too.
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trains = module.training and torch.is_grad_enabled()
            late = trainer is None or _batches_left(trainer) <= count
            if isinstance(module, Blended) and trains and late:
                inputs.append(_kept(module.model, args, kwargs))

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


def _batches_left(trainer: Trainer) -> int:
    """Return how many batches there are up to the next validation; 0 where that is not known."""
    number = trainer.fit_loop.batch_idx
    every: float = trainer.val_check_batch or math.inf
    left = min(every - number % every, trainer.num_training_batches - number)
    return 0 if left == math.inf else int(left)


def _kept(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    """Return the arguments of a call, in the host's memory, as an example."""
    found: Example = _named(model, args, kwargs) if kwargs else args
    kept: Example = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), found)
    return kept


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of forward, all by name."""
    bound = signature(model.forward).bind(*args, **kwargs)
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named

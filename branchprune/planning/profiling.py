"""What a model costs: parameters, multiply-adds, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from branchprune.graph.fast_path import without_fast_path
from branchprune.graph.inputs import Example, call, tensors, training_mode
from branchprune.graph.macs_counter import MacsCounter


def count_macs(
    model: nn.Module, example: Example, forward: Callable[..., Any] | None = None
) -> int:
    """Return the multiply-adds of one forward pass in convolutions and matrix products.

    Args:
        model: The network.
        example: An example input.
        forward: What to call; None: the model.
    """
    modes = _without_gradients(model), training_mode(model, False)
    with modes[0], modes[1], without_fast_path(), MacsCounter() as counter:
        call(model, example, forward)
    return counter.macs


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter need a gradient, for which torch's counter would ask, for a `with` block."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that weights, input and activations take at the peak of a forward pass.

    On a GPU this is the peak of torch's allocator. Elsewhere it is the peak of all live tensors;
    what a kernel takes for itself is not seen.

    Args:
        model: The network.
        x: A batch on the model's device.
    """
    weights = {id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    own = sum(weights.values()) + x.nbytes
    with torch.inference_mode(), training_mode(model, False):
        if x.device.type == "cuda":
            before = torch.cuda.memory_allocated(x.device)
            torch.cuda.reset_peak_memory_stats(x.device)
            model(x)
            return own + int(torch.cuda.max_memory_allocated(x.device)) - before
        with _LiveTensors() as live:
            model(x)
    return own + int(live.peak)


class _LiveTensors(TorchDispatchMode):
    """Follows how many bytes the tensors made inside it take; `peak` is the most of them."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = {tensor.untyped_storage() for tensor in tensors((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        for storage in {tensor.untyped_storage() for tensor in tensors(output)} - before:
            self.now += storage.nbytes()
            weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return output

    def _release(self, size: int) -> None:
        self.now -= size

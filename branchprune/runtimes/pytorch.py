"""PyTorch itself, layer by layer as forward calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.graph.inputs import (
    Example,
    copied,
    example_inputs,
    on_device,
    put,
    tensors,
)
from branchprune.runtimes.runtime import Step, threads_of


class PyTorch:
    """Runs a model as it is, on the device of its parameters.

    Args:
        threads: Of the processor; None: one for each core.

    Attributes:
        name: "PyTorch".
        threads: See above.
    """

    name = "PyTorch"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads_of(threads)

    def version(self) -> str:
        """Return the version of PyTorch."""
        return str(torch.__version__)

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        ready = copied(model, sharing=True).eval()
        for module in ready.modules():  # which forward may change
            put(
                module._buffers,
                {n: b if b is None else b.clone() for n, b in module._buffers.items()},
            )
        own = tree_map_only(Tensor, lambda x: x.detach().clone(), on_device(example, model))
        args, kwargs = example_inputs(own)
        tried, named = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        before = [each._version for each in tensors((tried, named))]
        with torch.no_grad(), _threads(self.threads):
            ready(*tried, **named)
        changes = before != [each._version for each in tensors((tried, named))]

        def step() -> object:
            with torch.inference_mode(), _threads(self.threads):
                if not changes:
                    return ready(*args, **kwargs)
                args_now, kwargs_now = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                return ready(*args_now, **kwargs_now)

        return step


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if before != count:
            torch.set_num_threads(count)
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)

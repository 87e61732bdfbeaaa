"""PyTorch itself, layer by layer as forward calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from branchprune.graph.inputs import Example, copied, example_inputs, on_device
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
        args, kwargs = example_inputs(on_device(example, model))

        def step() -> object:
            with torch.inference_mode(), _threads(self.threads):
                return ready(*args, **kwargs)

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

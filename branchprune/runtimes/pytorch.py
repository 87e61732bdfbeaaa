"""PyTorch itself, layer by layer as forward calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from branchprune.graph.inputs import (
    Example,
    evaluating,
    example_inputs,
    on_device,
    put,
    tensors,
)
from branchprune.runtimes.runtime import Opened, Step, running, threads_of


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
        return self._step(self._ready(model), on_device(example, model))

    def opened(self, file: Path, what: str) -> Opened:
        """Read a file of torch.export, which runs pickles in it: read none of a stranger.

        Args:
            file: Its path.
            what: What it is called in messages.

        Raises:
            PruneError: PyTorch cannot read it, or later, cannot run it.
        """
        with running(what, self.name):
            ready = torch.export.load(file).module()

        def on(example: Example) -> Step:
            with running(what, self.name):
                return self._step(ready, example)

        return on

    def _ready(self, model: nn.Module) -> nn.Module:
        """Return a model in evaluation mode, with buffers of its own."""
        ready = evaluating(model)
        for module in ready.modules():  # which forward may change
            put(
                module._buffers,
                {n: b if b is None else b.clone() for n, b in module._buffers.items()},
            )
        return ready

    def _step(
        self, ready: nn.Module, example: Example, run: Callable[..., object] | None = None
    ) -> Step:
        """Return what runs a model on a copy of an example, or on a new one if it changes it.

        Args:
            ready: The model, which is run once.
            example: Its inputs.
            run: What to call in a step; None: the model.
        """
        forward = run or ready
        own = tree_map_only(Tensor, lambda x: x.detach().clone(), example)
        args, kwargs = example_inputs(own)
        tried, named = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        before = [each._version for each in tensors((tried, named))]
        with torch.no_grad(), _threads(self.threads):
            ready(*tried, **named)
        changes = before != [each._version for each in tensors((tried, named))]

        def step() -> object:
            with torch.inference_mode(), _threads(self.threads):
                if not changes:
                    return forward(*args, **kwargs)
                args_now, kwargs_now = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                return forward(*args_now, **kwargs_now)

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

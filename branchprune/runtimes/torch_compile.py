"""PyTorch with what torch.compile makes of a model."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from branchprune.graph.inputs import Example, on_device
from branchprune.runtimes.pytorch import PyTorch
from branchprune.runtimes.runtime import Step, running


class TorchCompile(PyTorch):
    """Runs a model through `torch.compile`, for the very sizes of the example.

    It is compiled as the step is prepared, which takes seconds, and on a processor a C++ compiler.

    Args:
        threads: Of the processor; None: one for each core.

    Attributes:
        name: "torch.compile".
        threads: See above.
    """

    name = "torch.compile"

    def prepared(self, model: nn.Module, example: Example) -> Step:
        """Return what runs a model on an example; see `Runtime`."""
        ready = self._ready(model)
        compiled = torch.compile(_of_its_own(ready), dynamic=False)
        step = self._step(ready, on_device(example, model), compiled)
        with running(type(model).__name__, self.name):
            step()
        return step


def _of_its_own(model: nn.Module) -> Callable[..., Any]:
    """Return a function that calls a model, and has a code object that no other has.

    torch.compile keeps what it has made with the code: of a class whose forward has been compiled
    for eight modules, it would run the ninth as it is, and say nothing.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)

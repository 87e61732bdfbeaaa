"""The memory of a model that frees each tensor when it has been read for the last time."""

import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows the bytes of the memory that operations make and that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = _memories((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = _memories(result)
        for key in made.keys() - before.keys():
            self.now += made[key].nbytes()
            weakref.finalize(made[key], self._forget, made[key].nbytes())
        return result

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes


def _memories(values: Any) -> dict[int, torch.UntypedStorage]:
    found = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return {each._cdata: each for each in found}


class Frugal(fx.Interpreter):
    """Runs a model and drops what is read for the last time; `peak` is the most that was live.

    It looks behind each operation, as what the operation has taken for itself is gone again.
    """

    def __init__(self, model: nn.Module, live: Live) -> None:
        super().__init__(fx.symbolic_trace(model), garbage_collect_values=True)
        self.live, self.peak = live, 0

    def run_node(self, node: fx.Node) -> Any:
        """Run an operation."""
        result = super().run_node(node)
        self.peak = max(self.peak, self.live.now)
        return result


def weights_of(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def measured_memory(model: nn.Module, x: Tensor) -> int:
    """Return the bytes of weights, input and all that is live at the peak."""
    with torch.no_grad(), Live() as live:
        frugal = Frugal(model, live)
        frugal.run(x)
    return weights_of(model) + x.nbytes + frugal.peak

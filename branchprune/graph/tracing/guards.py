"""Conditions on shapes in forward: which branch an example takes, and a guard that it stays so.

`torch.fx` records one path through forward. Where an `if` asks for shapes, the path of the example
is recorded, together with a guard: an input that would take the other path is refused. The same
goes for a size that forward turns into a plain number, as by `int(x.shape[2] / 2)`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from branchprune.errors import PruneError
from branchprune.graph.inputs import own_buffers

_PACKAGE = Path(__file__).parents[2]
MACHINERY = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, _PACKAGE))
"""Folders whose code is not a user's."""
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


def same_branch(condition: Any, expected: bool, what: str, place: str) -> None:
    """Refuse an input for which forward would take another branch than for the example.

    Raises:
        PruneError: The condition is not what it was.
    """
    if bool(condition) != expected:
        raise PruneError(
            f"forward takes another branch than for the plan's example at {what}{place}: plan with "
            "an example of the shape that is used, or move the condition out of forward"
        )


def same_number(number: Any, expected: float, what: str, place: str) -> None:
    """Refuse an input for which a number in forward is another than for the example.

    Raises:
        PruneError: The number is not what it was.
    """
    if number != expected:
        raise PruneError(
            f"forward computes {number} from a shape, which was {expected} for the plan's example, "
            f"at {what}{place}: plan with an example of the shape that is used, or leave out int()"
        )


GUARDS = (same_branch, same_number)


class Conditions:
    """Computes values of a graph that is being recorded, with the shapes of an example.

    Args:
        root: The module that is traced.
        inputs: The example's inputs by the names of forward's arguments.
        inner: Whether it is a part of a model, so that its inputs have gradients.
    """

    def __init__(self, root: nn.Module, inputs: dict[str, Any], inner: bool = False) -> None:
        self.root, self.inputs, self.inner = root, inputs, inner
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values: dict[fx.Node, Any] = {}

    def value_of(self, node: fx.Node) -> Any:
        """Return the value of a node; tensors have a shape and no numbers.

        Raises:
            Exception: Whatever happens when it is computed, as where numbers are asked for.
        """
        interpreter = fx.Interpreter(self.root, graph=node.graph)
        interpreter.env = self.values
        needed = _ancestors(node) - self.values.keys()
        with self.mode, torch.no_grad(), _not_traced(), own_buffers(self.root):
            for each in [each for each in node.graph.nodes if each in needed]:
                if each.op == "placeholder":
                    self.values[each] = self._input(str(each.target))
                else:
                    self.values[each] = interpreter.run_node(each)
        return self.values[node]

    def _input(self, name: str) -> Any:
        return tree_map_only(Tensor, self.mode.from_tensor, self.inputs[name])


@contextmanager
def numbers_from_shapes() -> Iterator[None]:
    """Let int(), float() and range() take a size that is being traced, for a `with` block.

    They get the example's number, and the trace a guard.
    """

    def number_of(kind: type) -> Callable[[fx.Proxy], Any]:
        def convert(proxy: fx.Proxy) -> Any:
            tracer: Any = proxy.tracer
            return kind(tracer.number_of(proxy))

        return convert

    with ExitStack() as stack:
        for name, kind in (("__int__", int), ("__index__", int), ("__float__", float)):
            patch = mock.patch.object(fx.Proxy, name, number_of(kind), create=True)
            stack.enter_context(patch)
        yield


@contextmanager
def _not_traced() -> Iterator[None]:
    """Take back what a trace changes in every module: calls and attributes are plain again."""
    with (
        mock.patch.object(nn.Module, "__call__", _CALL),
        mock.patch.object(nn.Module, "__getattr__", _GETATTR),
    ):
        yield


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    rest = [node]
    while rest:
        node = rest.pop()
        if node not in found:
            found.add(node)
            rest += node.all_input_nodes
    return found


def source_line() -> tuple[str, str]:
    """Return the line of a user's forward that is being traced, and where it is."""
    frames = traceback.extract_stack()
    users = [frame for frame in frames if not frame.filename.startswith(MACHINERY)]
    return (
        (f"`{users[-1].line}`", f" ({users[-1].filename}:{users[-1].lineno})")
        if users
        else ("", "")
    )


def same_modes(model: nn.Module, names: Iterable[str], training: bool) -> None:
    """Raise a PruneError for a module in another mode than the whole.

    Args:
        model: The model.
        names: The modules whose forward was traced differently in the two modes.
        training: The mode of the whole.
    """
    for name in names:
        if model.get_submodule(name).training != training:
            raise PruneError(
                f"{name} is in {'evaluation' if training else 'training'} mode and the model "
                f"around it is not, but its forward, which was traced, depends on the mode of "
                "the whole: leave it out with `opaque`, or use nn.Dropout for F.dropout"
            )

"""What forward does beside computing tensors, which a trace would lose without a word.

That is gradients (`no_grad`, autocast, an `autograd.Function`), random draws in Python, and
attributes that count or remember.
"""

from __future__ import annotations

import inspect
import operator
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from branchprune.errors import PruneError
from branchprune.graph.inputs import generator_states
from branchprune.graph.tracing.guards import GUARDS, source_line

Function = torch.autograd.Function
_COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
_NO_GRADIENT = {
    *GUARDS,
    *(getattr(operator, name) for name in (*_COMPARISONS, "is_", "is_not", "not_")),
    *(getattr(torch, name) for name in (*_COMPARISONS, "argmax", "argmin", "sign")),
    *(*_COMPARISONS, "argmax", "argmin", "sign", "size", "dim", "numel", "detach", "item"),
    torch.detach,
}
"""Functions and methods that pass no gradient on, whatever the mode."""
_PLAIN = (bool, int, float, str)
_SAME_NUMBERS = ("T", "mT", "H", "mH", "real", "imag")
"""Attributes of a tensor that pass a gradient on."""


def refuse_lost_gradient(node: fx.Node, part: nn.Module, inside: bool, where: str) -> None:
    """Raise a PruneError for a node under `no_grad` that would pass a gradient on without it.

    Args:
        node: What forward has just computed under `no_grad`.
        part: The module that is traced.
        inside: Whether it is a part of a model, so that its inputs have gradients.
        where: Path of the module whose forward it is.
    """
    if _has_gradient(node, part, inside):
        line, place = source_line()
        raise PruneError(
            f"forward of {where} computes {line or node.name}{place} under no_grad, which a trace "
            f"loses: use detach() instead, or leave the module out with `opaque`"
        )


def _has_gradient(node: fx.Node, part: nn.Module, inside: bool) -> bool:
    """Return whether a gradient flows through a node to a parameter or an inner input."""
    seen: set[fx.Node] = set()
    rest = [node]
    while rest:
        each = rest.pop()
        if each in seen or _passes_nothing(each):
            continue
        seen.add(each)
        if inside and each.op == "placeholder":
            return True
        if each.op == "call_module" and _has_parameters(part.get_submodule(str(each.target))):
            return True
        if each.op == "get_attr" and _is_parameter(part, str(each.target)):
            return True
        rest += each.all_input_nodes
    return False


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_parameter(part: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name in part.get_submodule(owner)._parameters


def _passes_nothing(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] not in _SAME_NUMBERS
    return node.op.startswith("call_") and node.target in _NO_GRADIENT


def is_checkpointed() -> bool:
    """Return whether what runs now is checkpointed by `torch.utils.checkpoint`."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def no_autocast(where: Callable[[], str]) -> Iterator[None]:
    """Refuse a forward that enters or leaves autocast, for a `with` block.

    Args:
        where: Returns the path of the module whose forward is being traced.
    """
    thread = threading.get_ident()
    original: Callable[..., Any] = torch.autocast.__enter__

    def refuse(context: torch.autocast) -> Any:
        if thread != threading.get_ident():
            return original(context)
        raise PruneError(
            f"forward of {where()} uses torch.autocast, which a trace loses: put it around the "
            "call of the model, or cast tensors with .float()"
        )

    with mock.patch.object(torch.autocast, "__enter__", refuse):
        yield


@contextmanager
def recorded_functions() -> Iterator[None]:
    """Let a trace record every `autograd.Function` as a whole, with its own backward.

    Without it, a trace sees the operations in its forward, whose gradients are others.
    """
    original = getattr_static(Function, "apply")

    def apply(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        proxy = next((leaf for leaf in leaves if isinstance(leaf, fx.Proxy)), None)
        if proxy is None:
            return original.__get__(None, kind)(*args, **kwargs)
        if any(callable(leaf) and not isinstance(leaf, fx.Proxy) for leaf in leaves):
            raise PruneError(
                f"forward gives the autograd function {kind.__name__} a function or a module, "
                "into which a trace does not see: leave the module around it out with `opaque`"
            )
        return proxy.tracer.create_proxy("call_function", _Whole(kind), args, kwargs)

    with mock.patch.object(Function, "apply", classmethod(apply)):
        yield


class _Whole:
    """An `autograd.Function` as a function that a graph can hold and that can be pickled."""

    def __init__(self, kind: type[Function]) -> None:
        self.kind, self.__name__ = kind, kind.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.kind.apply(*args, **kwargs)


def refuse_generator(value: object, where: str) -> None:
    """Raise a PruneError if an argument of what forward computes is a generator of torch.

    Args:
        value: The argument.
        where: Path of the module whose forward it is.
    """
    if isinstance(value, torch.Generator):
        line, place = source_line()
        raise PruneError(
            f"forward of {where} computes {line}{place} with a torch.Generator, which no graph can "
            "hold: draw without `generator`, or leave the module out with `opaque`"
        )


def refuse_kept_nodes(graph: fx.Graph) -> None:
    """Raise a PruneError if forward uses what it has computed, and kept, in an earlier call."""
    for node in graph.nodes:
        for each in node.all_input_nodes:
            if each.graph is not graph:
                raise PruneError(
                    f"forward keeps {each.name}, which it computes, for a later call, where "
                    f"{node.name} uses it; a trace loses that: compute it in __init__ or in each "
                    "call, or leave the module out with `opaque`"
                )


class Draws:
    """Notices whether a forward that is being traced draws random numbers itself."""

    def __init__(self) -> None:
        self.before = generator_states()

    def moved(self) -> list[str]:
        """Return the names of the generators that have moved."""
        now = generator_states()
        return [name for name, state in self.before.items() if state != now[name]]

    def refuse(self, where: str) -> None:
        """Raise a PruneError if a generator has moved.

        Args:
            where: Path of the module whose forward has just been traced.
        """
        if moved := self.moved():
            raise _drawn(where, " and ".join(moved))


def _drawn(where: str, generators: str) -> PruneError:
    return PruneError(
        f"forward of {where} draws random numbers from {generators}, and a trace would keep the "
        "first draw for ever: draw from a tensor, as by torch.rand_like(x), F.dropout or "
        "x.new_empty(size).normal_(), or leave the module out with `opaque`"
    )


class Attributes:
    """Notices whether tracing changes numbers, flags, strings or generators that modules remember.

    Args:
        part: The module that is traced.
    """

    def __init__(self, part: nn.Module) -> None:
        self.part, self.before = part, _plain_attributes(part)
        self.generators = _generators(part)

    def refuse(self) -> None:
        """Raise a PruneError if one is another than it was."""
        now = _plain_attributes(self.part)
        for (path, name), value in self.before.items():
            new = now.get((path, name), value)
            if new != value and (new == new or value == value):
                where = path or type(self.part).__name__
                raise PruneError(
                    f"forward of {where} changes its attribute {name} (from {value!r} to {new!r}), "
                    "which a trace loses: leave the module out with `opaque`, or make it a constant"
                )
        moved = _generators(self.part)
        for (path, name), state in self.generators.items():
            if moved.get((path, name), state) != state:
                raise _drawn(path or type(self.part).__name__, f"its attribute {name}")


def _plain_attributes(part: nn.Module) -> dict[tuple[str, str], bool | int | float | str]:
    return {
        (path, name): value
        for path, module in part.named_modules()
        for name, value in vars(module).items()
        if type(value) in _PLAIN
    }


def _generators(part: nn.Module) -> dict[tuple[str, str], bytes]:
    """Return the states of the generators of Python and NumPy that modules hold."""
    return {
        (path, name): pickle.dumps(value)
        for path, module in part.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, random.Random) or type(value).__module__.startswith("numpy.random")
    }

"""What forward does beside computing tensors, which a trace would lose without a word.

That is gradients (`no_grad`, an `autograd.Function`), random draws in Python, and attributes that
count or remember.
"""

from __future__ import annotations

import inspect
import operator
import pickle
import random
from collections.abc import Collection
from functools import lru_cache

import torch
from torch import fx, nn
from torch.utils import checkpoint

from branchprune.errors import PruneError
from branchprune.graph.module_numbers import ModuleNumber
from branchprune.graph.random_generators import generator_states
from branchprune.graph.tracing.guards import GUARDS, source_line

_COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne")
_NO_GRADIENT = {
    *GUARDS,
    *(getattr(operator, name) for name in (*_COMPARISONS, "is_", "is_not", "not_")),
    *(getattr(torch, name) for name in (*_COMPARISONS, "argmax", "argmin", "sign")),
    *(*_COMPARISONS, "argmax", "argmin", "sign", "size", "dim", "numel", "detach", "item"),
    torch.detach,
}
"""Functions and methods that pass no gradient on, whatever the mode."""
_PLAIN = frozenset((bool, int, ModuleNumber, float, str))
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


def draws_are_lost(what: str, where: str) -> PruneError:
    """Return the error for a forward that draws random numbers that are not recorded."""
    return PruneError(
        f"forward of {where} draws random numbers from {what}, and a trace would keep the first "
        "draw for ever: draw tensors, as by torch.rand_like(x), torch.rand(size) or F.dropout, or "
        "leave the module out with `opaque`"
    )


def state_is_changed(name: str) -> PruneError:
    """Return the error for a forward that writes into a parameter or buffer."""
    owner = name.rpartition(".")[0] or "the module"
    return PruneError(
        f"forward changes {name}, which a trace loses: leave {owner} out with `opaque`, or teach "
        "its class with `bp.teach`"
    )


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


class Draws:
    """Notices whether a forward that runs draws random numbers where it is not recorded.

    Args:
        torchs: Whether draws of torch count, too, since recorded ones draw nothing.
    """

    def __init__(self, torchs: bool) -> None:
        self.torchs, self.before = torchs, generator_states()

    def moved(self) -> list[str]:
        """Return the names of the generators that have moved."""
        now = generator_states()
        moved = [name for name, state in self.before.items() if state != now[name]]
        return [name for name in moved if self.torchs or not name.startswith("torch")]

    def refuse(self, where: str) -> None:
        """Raise a PruneError if a generator has moved.

        Args:
            where: Path of the module whose forward has run.
        """
        if moved := self.moved():
            raise draws_are_lost(" and ".join(moved), where)


class Attributes:
    """Notices whether tracing changes numbers, flags, strings or generators that modules remember.

    Args:
        part: The module that is traced.
    """

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.before, self.generators = _remembered(part)

    def refuse(self, wholes: Collection[nn.Module]) -> None:
        """Raise a PruneError if one is another than it was.

        Args:
            wholes: Modules that are called as they are, where nothing is lost.
        """
        now, moved = _remembered(self.part)
        for (path, name), value in self.before.items():
            new = now.get((path, name), value)
            differs = new != value and (new == new or value == value)
            if differs and (name == "training" or self.part.get_submodule(path) not in wholes):
                where = path or type(self.part).__name__
                raise PruneError(
                    f"forward of {where} changes its attribute {name} (from {value!r} to {new!r}), "
                    "which a trace loses: leave the module out with `opaque`, or make it a constant"
                )
        for (path, name), state in self.generators.items():
            if moved.get((path, name), state) != state:
                raise draws_are_lost(f"its attribute {name}", path or type(self.part).__name__)


def forget_shapes(part: nn.Module) -> None:
    """Take from modules the shapes that they keep of an earlier input.

    Forward then computes anew what it caches for a shape, as a new model does, and not for the
    shape of the example alone.

    Args:
        part: The module that is traced; it is changed.
    """
    for module in part.modules():
        for name, value in vars(module).items():
            if type(value) is torch.Size:
                vars(module)[name] = None


Key = tuple[str, str]
"""Path of a module and name of its attribute."""


def _remembered(part: nn.Module) -> tuple[dict[Key, bool | int | float | str], dict[Key, bytes]]:
    """Return what modules remember.

    Returns:
        Numbers, flags and strings, and the states of generators of Python and NumPy.
    """
    plain: dict[Key, bool | int | float | str] = {}
    generators: dict[Key, bytes] = {}
    for path, module in part.named_modules():
        for name, value in vars(module).items():
            kind: type = type(value)
            if kind in _PLAIN:
                plain[path, name] = value
            elif _is_generator(kind):
                generators[path, name] = pickle.dumps(value)
    return plain, generators


@lru_cache(maxsize=256)
def _is_generator(kind: type) -> bool:
    return issubclass(kind, random.Random) or kind.__module__.startswith("numpy.random")

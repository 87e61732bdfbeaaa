"""Whole numbers that a user's modules keep, such as `self.channels = 64`, followed through forward.

While forward is recorded, `self.channels` is a `ModuleNumber`: a plain `int` that remembers its
attribute, as do the numbers computed from it. A graph that says `x[:, :64]` so knows where its 64
comes from, and a narrower model gets the number of its width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer)


@dataclass(frozen=True)
class Attribute:
    """Where a module keeps a number.

    Attributes:
        module: Path of the module; "" for the model.
        name: Name of the attribute.
        index: Its place in a tuple or list; None for a number that stands alone.
    """

    module: str
    name: str
    index: int | None = None

    def __str__(self) -> str:
        item = "" if self.index is None else f"[{self.index}]"
        return f"{self.module}.{self.name}{item}".lstrip(".")


Values = Mapping[Attribute, int]
"""What attributes hold at other widths; those that are not named hold what they do now."""


class ModuleNumber(int):
    """A number that a module keeps, or one computed from such, with what it is for the model.

    Attributes:
        source: Its attribute, or a function and what it is computed of.
        taken: Attributes of which a number has gone where its way is lost: into a float, or into
            a tensor of plain numbers.
    """

    source: Attribute | tuple[Callable[..., int], tuple[int, ...]]
    taken: set[Attribute]

    @property
    def attributes(self) -> frozenset[Attribute]:
        """The attributes that it follows from."""
        if isinstance(self.source, Attribute):
            return frozenset([self.source])
        parts = [n.attributes for n in self.source[1] if isinstance(n, ModuleNumber)]
        return frozenset().union(*parts)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from an equal number of another source."""
        if isinstance(self.source, Attribute):
            return (self.source,)
        function, operands = self.source
        return (function, *(n.key if isinstance(n, ModuleNumber) else n for n in operands))

    def at(self, values: Values) -> int:
        """Return what it is where attributes hold other values.

        Raises:
            ArithmeticError: It cannot be computed of these.
        """
        if isinstance(self.source, Attribute):
            return values.get(self.source, int(self))
        function, operands = self.source
        return function(*(n.at(values) if isinstance(n, ModuleNumber) else n for n in operands))

    def take(self) -> None:
        """Note that it goes where its way is lost."""
        self.taken.update(self.attributes)

    def __float__(self) -> float:
        self.take()
        return int.__float__(self)

    def __truediv__(self, other: Any) -> Any:
        return self._lost(int.__truediv__, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._lost(int.__rtruediv__, other)

    def __neg__(self) -> ModuleNumber:
        return _number(-int(self), (operator.neg, (self,)), self.taken)

    def _lost(self, function: Callable[[int, Any], Any], other: Any) -> Any:
        value = function(int(self), other)
        if value is not NotImplemented or isinstance(other, float):
            self.take()
        return value


def _number(value: int, source: Any, taken: set[Attribute]) -> ModuleNumber:
    number = ModuleNumber(value)
    number.source, number.taken = source, taken
    return number


def _follows(name: str, swapped: bool) -> Callable[[ModuleNumber, Any], Any]:
    function = getattr(operator, name)
    plain = getattr(int, f"__{'r' if swapped else ''}{name}__")

    def method(self: ModuleNumber, other: Any) -> Any:
        if type(other) is not int and not isinstance(other, ModuleNumber):
            return self._lost(plain, other)
        operands = (other, self) if swapped else (self, other)
        value = function(*map(int, operands))
        if not isinstance(value, int):
            return self._lost(plain, other)
        return _number(value, (function, operands), self.taken)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    setattr(ModuleNumber, f"__{_name}__", _follows(_name, swapped=False))
    setattr(ModuleNumber, f"__r{_name}__", _follows(_name, swapped=True))


@contextmanager
def module_numbers(part: nn.Module, inside: str) -> Iterator[set[Attribute]]:
    """Let users' modules keep `ModuleNumber`s for a `with` block, in place of plain numbers.

    Those above 1 are meant, alone or in a tuple or list of whole numbers, of modules that are no
    layers of torch; a bare `nn.Module` or a container may have been given some. The values are not
    put back here.

    Args:
        part: The module that is recorded.
        inside: Its path.

    Yields:
        The attributes whose way is lost; it fills while forward runs.
    """
    taken: set[Attribute] = set()
    for path, module in part.named_modules(prefix=inside):
        if _is_users(module):
            for name, value in vars(module).items():
                if _is_kept(value):
                    vars(module)[name] = _followed(value, Attribute(path, name), taken)
    yield taken


def _is_users(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    torchs = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.")]
    return type(module) in CONTAINERS or (
        type(module) not in torchs and all(kind in CONTAINERS for kind in torchs)
    )


def _is_kept(value: Any) -> bool:
    if type(value) in (tuple, list):
        return len(value) > 0 and all(type(each) is int for each in value) and max(value) > 1
    return type(value) is int and value > 1


def _followed(value: Any, where: Attribute, taken: set[Attribute]) -> Any:
    if type(value) is int:
        return _number(value, where, taken)
    places = [Attribute(where.module, where.name, i) for i in range(len(value))]
    parts = [
        _number(each, place, taken) if each > 1 else each
        for each, place in zip(value, places, strict=True)
    ]
    return type(value)(parts)


def distinct(value: Any) -> Any:
    """Return what a value is looked up by: an equal number of another source is another one."""
    return (ModuleNumber, *value.key) if isinstance(value, ModuleNumber) else value


def numbers_in(arguments: Any) -> Iterator[ModuleNumber]:
    """Yield the numbers of modules among the arguments of a node."""
    if isinstance(arguments, ModuleNumber):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for each in arguments:
            yield from numbers_in(each)
    elif isinstance(arguments, dict):
        yield from numbers_in(list(arguments.values()))
    elif isinstance(arguments, slice):
        yield from numbers_in((arguments.start, arguments.stop, arguments.step))


def replace_numbers(node: fx.Node, values: Values) -> None:
    """Give a node plain numbers in place of those of modules.

    Args:
        node: The node; it is changed.
        values: What attributes hold.
    """

    def plain(arguments: Any) -> Any:
        if isinstance(arguments, ModuleNumber):
            return arguments.at(values)
        if isinstance(arguments, tuple | list):
            return type(arguments)(map(plain, arguments))
        if isinstance(arguments, dict):
            return {key: plain(each) for key, each in arguments.items()}
        if isinstance(arguments, slice):
            return slice(*map(plain, (arguments.start, arguments.stop, arguments.step)))
        return arguments

    if any(True for _ in numbers_in((node.args, node.kwargs))):
        node.args, node.kwargs = plain(node.args), plain(node.kwargs)

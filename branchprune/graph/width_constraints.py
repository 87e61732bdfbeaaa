"""What numbers in forward must be for the widths that are cut by them.

Where forward says `split(x, [self.a, self.b])`, the number `self.a` must be the width of the first
part, whatever that will be. From such constraints follow the values of attributes at other widths,
or, if no values do, that the width stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from branchprune.graph.channels import Channels, Segment, resolve, unify
from branchprune.graph.module_numbers import Attribute, ModuleNumber, Values
from branchprune.graph.nodes import measured
from branchprune.graph.reasons import Reason
from branchprune.graph.structure import WidthNumber, size_of

CHOICES = 3
"""Choices of widths at which constraints are tried."""


@dataclass(frozen=True)
class Follows:
    """A number that must be the width of some channels.

    Attributes:
        number: The number: of a module, or a node that computes it from sizes.
        segments: The channels.
        sign: -1 for a number that counts from the end, as in `x[:, -self.a:]`.
        where: The operation that reads it, as named to people.
        place: File and line of the user's forward.
    """

    number: ModuleNumber | fx.Node
    segments: tuple[Segment, ...]
    sign: int
    where: str
    place: str


def solve(wanted: Iterable[tuple[ModuleNumber, int]]) -> dict[Attribute, int]:
    """Return values of attributes with which numbers are what they must be, as far as there are.

    Of several attributes that no other number determines, as of `channels // paths`, the largest
    changes.

    Args:
        wanted: Numbers, and what each must be.
    """
    values: dict[Attribute, int] = {}
    rest = sorted(wanted, key=lambda pair: not isinstance(pair[0].source, Attribute))
    while rest:
        unknown = [number.attributes - values.keys() for number, _ in rest]
        place = min(range(len(rest)), key=lambda i: len(unknown[i]))
        number, value = rest.pop(place)
        held = {each: value_of(number, each) for each in unknown[place]}
        attribute = max(held, key=lambda each: (held[each], str(each)))
        values |= held
        values[attribute] = _inverse(number, value, attribute, values)
        rest = [pair for pair in rest if pair[0].attributes - values.keys()]
    return values


def _inverse(number: ModuleNumber, value: int, attribute: Attribute, values: Values) -> int:
    """Return a value of an attribute for which a number has a value, or may have it."""
    if number.source == attribute:
        return value
    old = value_of(number, attribute)
    start = number.at({**values, attribute: old})
    slope = number.at({**values, attribute: old + 1}) - start
    if slope:
        return old + (value - start) // slope
    return old * value // start if start else old


def value_of(number: ModuleNumber, attribute: Attribute) -> int:
    """Return what an attribute holds for the model, of a number that follows from it."""
    if isinstance(number.source, Attribute):
        return int(number)
    parts = [n for n in number.source[1] if isinstance(n, ModuleNumber)]
    return next(value_of(n, attribute) for n in parts if attribute in n.attributes)


def values_at(numbers: Sequence[WidthNumber], kept: Sequence[int]) -> dict[Attribute, int]:
    """Return what attributes must hold at the widths that groups keep, where that is another value.

    Args:
        numbers: The numbers in forward that are widths.
        kept: The width of each group.
    """
    found = solve([(each.number, each.sign * size_of(each.pieces, kept)) for each in numbers])
    before = {a: value_of(each.number, a) for each in numbers for a in each.number.attributes}
    return {a: value for a, value in found.items() if value != before[a]}


Size = Callable[[fx.Node, int], tuple[Segment, ...] | int]
"""What a size of a tensor counts: channels, or a number that stays."""


class Constraints:
    """The constraints that the walk has found, and what pins attributes to their values.

    Attributes:
        follows: The constraints.
        read: The operations that read a number as a width, each with the number's id.
        pinned: Attributes that must keep their value, and what reads them.
    """

    def __init__(self) -> None:
        self.follows: list[Follows] = []
        self.read: set[tuple[fx.Node, int]] = set()
        self.pinned: dict[Attribute, str] = {}

    def pin(self, numbers: Iterable[ModuleNumber], what: str) -> None:
        """Note that something else reads numbers than the width that they may be."""
        for number in numbers:
            for attribute in number.attributes:
                self.pinned.setdefault(attribute, what)

    def freeze_unsolvable(self, made: Iterable[Channels], size: Size) -> None:
        """Freeze groups whose constraints hold at one width alone.

        Args:
            made: All output channels that have been met.
            size: What a size of a tensor counts.
        """
        every = [Segment(channels) for channels in made]
        every += [segment for each in self.follows for segment in each.segments]
        groups = [*dict.fromkeys(segment.channels for segment in resolve(every))]
        while any([self._freeze(groups, choice, size) for choice in range(CHOICES)]):
            pass

    def tie(self) -> None:
        """Tie channels that are counted by the same number to one width."""
        first: dict[tuple[object, int], Follows] = {}
        for each in self.follows:
            if isinstance(each.number, ModuleNumber):
                other = first.setdefault((each.number.key, each.sign), each)
                if other is not each:
                    unify(other.segments, each.segments, each.where)

    def _freeze(self, groups: Sequence[Channels], choice: int, size: Size) -> bool:
        """Freeze groups whose constraints fail at some widths; return whether there are any."""
        widths = {
            group: group.width if group.reason else _narrower(group, i + choice)
            for i, group in enumerate(groups)
        }
        at_widths = _AtWidths(self, widths, size)
        faults = {each: fault for each in self.follows if (fault := at_widths.fault(each))}
        found = False
        for each, fault in faults.items():
            for segment in resolve(self._concerned(each, size)):
                found = found or segment.channels.reason is None
                segment.channels.freeze(fault)
        return found

    def _concerned(self, fault: Follows, size: Size) -> list[Segment]:
        """Return all channels on which a number depends, directly or by others' attributes."""
        attributes, concerned = set[Attribute](), dict.fromkeys([fault])
        while True:
            attributes |= {a for each in concerned for a in _attributes(each.number)}
            more = [f for f in self.follows if attributes & _attributes(f.number)]
            if concerned.keys() >= set(more):
                break
            concerned |= dict.fromkeys(more)
        segments = [segment for each in concerned for segment in each.segments]
        for each in concerned:
            for source in _measured(each.number):
                counted = size(*source)
                segments += () if isinstance(counted, int) else counted
        return segments


def _parts(number: Any) -> list[Any]:
    """Return a number, and all from which its node computes it, down to sizes of tensors."""
    found, rest = [], [number]
    while rest:
        each = rest.pop()
        found.append(each)
        if isinstance(each, fx.Node) and measured(each) is None:
            rest += each.args
    return found


def _attributes_read(number: Any) -> list[tuple[ModuleNumber, Attribute]]:
    """Return the attributes from which a number is computed, each with that which follows it."""
    numbers = [part for part in _parts(number) if isinstance(part, ModuleNumber)]
    return [(each, a) for each in numbers for a in sorted(each.attributes, key=str)]


def _attributes(number: Any) -> set[Attribute]:
    return {attribute for _, attribute in _attributes_read(number)}


def _measured(number: Any) -> list[tuple[fx.Node, int]]:
    sources = [measured(part) for part in _parts(number)]
    return [source for source in sources if source is not None]


class _AtWidths:
    """The constraints at some widths.

    Args:
        constraints: The constraints.
        widths: The width of each group.
        size: What a size of a tensor counts.
    """

    def __init__(self, constraints: Constraints, widths: dict[Channels, int], size: Size) -> None:
        self.widths, self.size, self.pinned = widths, size, constraints.pinned
        self.values = solve(
            (each.number, each.sign * self._width(each.segments))
            for each in constraints.follows
            if isinstance(each.number, ModuleNumber)
        )

    def fault(self, each: Follows) -> Reason | None:
        """Return why a constraint does not hold; None if it does."""
        number = each.number
        for read, attribute in _attributes_read(number):
            before = value_of(read, attribute)
            if attribute in self.pinned and self.values.get(attribute, before) != before:
                why = f"{each.where} reads {attribute}, as does {self.pinned[attribute]}"
                return Reason(why, each.place)
        try:
            if self._number(number) == each.sign * self._width(each.segments):
                return None
        except (ArithmeticError, TypeError):
            pass
        names = ", ".join(sorted(map(str, _attributes(number)))) or "sizes"
        why = f"{each.where} computes its width from {names}, which gives no other width"
        return Reason(why, each.place)

    def _width(self, segments: Iterable[Segment]) -> int:
        return sum(self.widths[s.channels] * s.repeat for s in resolve(segments))

    def _number(self, value: Any) -> Any:
        if isinstance(value, ModuleNumber):
            return value.at(self.values)
        if not isinstance(value, fx.Node):
            return value
        source = measured(value)
        if source is None:
            function: Any = value.target
            return function(*map(self._number, value.args))
        counted = self.size(*source)
        return counted if isinstance(counted, int) else self._width(counted)


def _narrower(group: Channels, choice: int) -> int:
    """Return a width that a group may keep."""
    return group.blocks * (1 + (7 * choice + 3) % (group.width // group.blocks))

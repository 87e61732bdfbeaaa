"""What no choice of widths can reach, and why: the sum at the end of a plan."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from branchprune.graph.reasons import OUTPUT, Reason
from branchprune.graph.structure import ChannelGroup, Piece, Structure, size_of
from branchprune.planning.costs import Amount, Cost, amounts
from branchprune.planning.group_widths import PlannedGroup
from branchprune.planning.paths import within

INPUT = Reason("inputs of the model")
NO_CHANNEL = Reason("parameters that belong to no channel of a layer")
UNUSED = Reason("parameters that forward does not use")
FUNCTIONS = Reason("products of tensors that forward computes itself")
UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
LINES = 5
"""Reasons that are told one by one."""


@dataclass(frozen=True)
class Staying:
    """Parameters and multiply-adds that stay for one reason, whatever widths are chosen.

    An entry of a weight stays if both the channel that it makes and the one that it reads belong to
    groups that cannot shrink; an entry of a bias or a norm, if its channel does; and all that
    belongs to no channel. The model's inputs and outputs cannot shrink by nature. The reason of an
    entry is that of the channel it makes, unless that is an output of the model and the one it
    reads stays for a reason about which something can be done.

    What a user's arguments `exclude` and `keep` spare could shrink, and is not counted.

    Attributes:
        reason: Why it stays; of several that differ in layers and numbers alone, the one that
            most parameters stay for.
        place: File and line of the user's forward, "" where there is none.
        remedy: What to write or do, "" where nothing is known.
        params: Number of parameters.
        macs: Multiply-adds for one example.
        times: Number of such reasons.
        saves: How many parameters fewer the plan would have if these channels could shrink as its
            arguments ask, and no others more.
    """

    reason: str
    place: str
    remedy: str
    params: int
    macs: int
    times: int = 1
    saves: int = 0

    def __str__(self) -> str:
        more = f", and {self.times - 1} more like it" * (self.times > 1)
        place = f" ({self.place})" * bool(self.place)
        remedy = f": {self.remedy}" * bool(self.remedy)
        saves = f" (saves {short(self.saves)} parameters)" * bool(self.remedy and self.saves)
        return f"{self.reason}{more}{place}{remedy}{saves}"


def find_staying(
    model: nn.Module, structure: Structure, groups: Sequence[PlannedGroup]
) -> tuple[Staying, ...]:
    """Return what stays in a model whatever widths are chosen, the most parameters first.

    Args:
        model: The model.
        structure: Its structure.
        groups: What is planned, for what it would save if they could shrink.
    """
    every = [*amounts(model, structure)]
    sums: dict[tuple[str, str], _Sum] = {}
    for amount in every:
        for reason, share in _shares(amount, structure):
            each = sums.setdefault((reason.cause, reason.place), _Sum(reason))
            each.params += share * amount.params
            each.macs += share * amount.macs
    kinds: dict[tuple[str, str], list[_Sum]] = {}
    for each in sorted(sums.values(), key=lambda each: (each.params, each.macs), reverse=True):
        if each.params or each.macs:
            key = (kind_of(each.reason.cause, structure.modules), each.reason.place)
            kinds.setdefault(key, []).append(each)
    found = [_of_one_kind(sums, _Saved(structure, groups, every)) for sums in kinds.values()]
    return tuple(sorted(found, key=lambda each: (each.params, each.macs), reverse=True))


@dataclass
class _Sum:
    reason: Reason
    params: float = 0.0
    macs: float = 0.0


def _of_one_kind(sums: Sequence[_Sum], saved: _Saved) -> Staying:
    first = sums[0].reason
    text = "outputs of the model" if first == OUTPUT else str(first.cause)
    params, macs = round(sum(each.params for each in sums)), round(sum(e.macs for e in sums))
    causes = {(each.reason.cause, each.reason.place) for each in sums}
    saves = 0 if first in (INPUT, OUTPUT) else saved.by(causes)
    return Staying(text, first.place, first.remedy, params, macs, len(sums), saves)


@dataclass(frozen=True)
class _Saved:
    """What a plan would save if some of the channels that stay could shrink."""

    structure: Structure
    groups: Sequence[PlannedGroup]
    amounts: Sequence[Amount]

    def by(self, causes: Collection[tuple[str, str]]) -> int:
        """Return how many parameters fewer there would be without some causes of staying."""

        def ends(reason: Reason | None) -> bool:
            return reason is not None and (reason.cause, reason.place) in causes

        pairs = [*zip(self.groups, self.structure.groups, strict=True)]
        freed = [planned for planned, group in pairs if ends(group.reason)]
        if not freed:
            return 0
        kept = [planned.kept for planned in self.groups]
        wanted = [planned.wanted if ends(g.reason) else planned.kept for planned, g in pairs]
        # What reads channels that were lost sight of is taken to read the freed ones.
        share = sum(each.wanted for each in freed) / sum(each.width for each in freed)
        lost = {name for name, reason in self.structure.unknown.items() if ends(reason)}
        saved = 0.0
        for amount in self.amounts:
            unseen = amount.axes.count(None) if amount.module in lost else 0
            saved += amount.params * (amount.share(kept) - amount.share(wanted) * share**unseen)
        return round(saved)


def _shares(amount: Amount, structure: Structure) -> Iterator[tuple[Reason, float]]:
    """Yield the shares of an amount that stay, each with the reason."""
    if not amount.axes:
        yield _why_whole(amount, structure), 1.0
        return
    unknown = structure.unknown.get(amount.module, INPUT)
    for pieces in product(*(axis or (None,) for axis in amount.axes)):
        reasons = [unknown if piece is None else _why(piece, structure) for piece in pieces]
        stay = [reason for reason in reasons if reason is not None]
        if len(stay) == len(pieces):
            share = 1.0
            for piece, axis in zip(pieces, amount.axes, strict=True):
                share *= piece.size / size_of(axis) if piece and axis else 1.0
            yield next((r for r in stay if r not in (INPUT, OUTPUT)), stay[0]), share


def _why(piece: Piece, structure: Structure) -> Reason | None:
    """Return why the channels of a piece stay; None if they may shrink."""
    group = structure.groups[piece.group]
    if group.reason or group.blocks < group.width:
        return group.reason
    return structure.unknown.get(group.name) or _why_too_narrow(group)


def _why_too_narrow(group: ChannelGroup) -> Reason:
    if group.width == 1:
        return Reason(f"{group.name} makes a single channel")
    return Reason(
        f"{group.name} makes {group.width} channels in as many groups "
        "(grouped convolution, GroupNorm)"
    )


def _why_whole(amount: Amount, structure: Structure) -> Reason:
    """Return why all of an amount stays that has no axis of channels."""
    around = within(amount.module, structure.unknown)
    if around is not None:
        return structure.unknown[around]
    if not amount.params:
        return FUNCTIONS
    return UNUSED if within(amount.module, structure.used) is None else NO_CHANNEL


def kind_of(reason: str, layers: Iterable[str]) -> str:
    """Return a reason without the layers, nodes and numbers that make it one group's own."""
    names = "|".join(re.escape(name) for name in sorted(layers, key=len, reverse=True) if name)
    if names:
        reason = re.sub(rf"(?<![\w.`])(?:{names})(?![\w.`(])", "…", reason)
    reason = re.sub(r" \((?:node|in) [\w.… ]+\)", "", reason)
    reason = re.sub(r"(?<=[a-z])(?:_\d+)+(?=_|\b)", "", reason)
    return re.sub(r"(?<![\w(.-])\d+(?:\.\d+)?(?![\w)])", "n", reason)


def staying_lines(staying: Sequence[Staying], whole: Cost) -> list[str]:
    """Return what stays of a whole model, as lines for people."""
    params, macs = sum(each.params for each in staying), sum(each.macs for each in staying)
    lines = [
        f"of {short(whole.params)} parameters {short(params)} stay"
        f"{_percent(params, whole.params)} whatever widths are chosen, of {short(whole.macs)} "
        f"MACs {short(macs)}{_percent(macs, whole.macs)}:"
    ]
    shown = len(staying) if len(staying) <= LINES + 1 else LINES
    rest = staying[shown:]
    rows = [(each.params, each.macs, str(each)) for each in staying[:shown]]
    if rest:
        size = (sum(each.params for each in rest), sum(each.macs for each in rest))
        rows.append((*size, f"{len(rest)} other reasons"))
    return lines + [
        f"  {short(p)} parameter{'s' * (p != 1)}, {short(m)} MACs: {why}" for p, m, why in rows
    ]


def _percent(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def short(number: float) -> str:
    """Return a number that is short: 9,999, 10 k, 1.1 M."""
    if number < 10_000:
        return f"{number:,.0f}"
    unit, size = next((u, s) for u, s in UNITS if number >= s or s == 1e3)
    return f"{number / size:.0f} {unit}" if number >= 99.5 * size else f"{number / size:.1f} {unit}"


def short_bytes(number: float) -> str:
    """Return a number of bytes that is short: 9,999 B, 10 kB, 1.1 MB."""
    return f"{short(number)} B" if number < 10_000 else f"{short(number)}B"

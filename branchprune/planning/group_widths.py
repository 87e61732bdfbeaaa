"""Which channel groups shrink, and to what width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

from branchprune.errors import PruneError, whole
from branchprune.graph.structure import ChannelGroup, Pieces, Structure
from branchprune.planning.costs import macs_shares
from branchprune.planning.paths import makers, outputs_of, within


@dataclass(frozen=True)
class PlannedGroup:
    """One row of a plan.

    Attributes:
        name: Path of the first layer that makes the channels.
        layers: Paths of all layers that make them.
        width: Channels before.
        kept: Channels after.
        wanted: Channels that the arguments of the plan ask for, also where the width has to stay.
        reason: Why the width stays, or None.
        macs_share: Share of the model's multiply-adds spent in making these channels.
        times: How often the layer that names the group makes each of its channels: 4 where its
            output is cut into four chunks of one width.
        place: File and line of the user's forward because of which it stays, or "".
        remedy: What to write or do so that it may shrink, or "".
    """

    name: str
    layers: tuple[str, ...]
    width: int
    kept: int
    wanted: int
    reason: str | None
    macs_share: float
    times: int = 1
    place: str = ""
    remedy: str = ""

    @property
    def pruned(self) -> bool:
        """Whether the group gets a branch."""
        return self.reason is None

    @property
    def why(self) -> str:
        """Why the width stays, with the line of forward; "" if it does not."""
        return (self.reason or "") + (f" ({self.place})" if self.place else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the group as plain numbers and strings."""
        return vars(self) | {"layers": [*self.layers]}

    def row(self) -> tuple[str, str, str, str, str]:
        """Return the cells of the plan's table: name, layers, width, MACs, why it stays."""
        others = [name for name in self.layers if name != self.name]
        layers = ", ".join(others[:3]) + (f" … {len(others) - 3} more" if others[3:] else "")
        parts = f"{self.times} × " * (self.times > 1)
        width = f"{parts}{self.width}" + (f" → {parts}{self.kept}" if self.pruned else "")
        return self.name, layers and f"+ {layers}", width, f"{self.macs_share:.1%}", self.why


def check_widths(keep: float | Mapping[str, float], multiple_of: int) -> None:
    """Raise a PruneError for numbers by which no width can be chosen."""
    for fraction in keep.values() if isinstance(keep, Mapping) else [keep]:
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise PruneError(
                f"keep (={fraction!r}) must be in (0, 1]: it is the fraction that stays"
            )
    whole("multiple_of", multiple_of, 1)


def plan_groups(
    structure: Structure,
    keep: float | Mapping[str, float],
    exclude: Sequence[str],
    multiple_of: int,
) -> tuple[PlannedGroup, ...]:
    """Decide for each group how wide it will be; the arguments are those of `plan`.

    Raises:
        PruneError: None shrinks, or `keep` says two things of one.
    """
    shares, all_layers = macs_shares(structure), makers(structure)
    outputs = outputs_of(structure)
    groups = tuple(
        PlannedGroup(
            group.name,
            layers,
            group.width,
            *_widths(group, layers, keep, _excluded(structure, i, layers, exclude), multiple_of),
            macs_share=shares[i],
            times=_times(outputs[layers[0]], i) if layers else 1,
            place=group.reason.place if group.reason else "",
            remedy=group.reason.remedy if group.reason else "",
        )
        for i, (group, layers) in enumerate(zip(structure.groups, all_layers, strict=True))
    )
    if not any(group.pruned for group in groups):
        raise PruneError(f"nothing in the model can be pruned ({_why_all_stay(groups)})")
    return groups


def _why_all_stay(groups: Sequence[PlannedGroup]) -> str:
    """Say why no group shrinks, and what to do about it, each reason once."""
    names: dict[str, list[str]] = {}
    for group in groups:
        why = group.why + f": {group.remedy}" * bool(group.remedy)
        names.setdefault(why, []).append(group.name)
    reasons = [f"{_first(found, 3, ', ', ' … ')}: {why}" for why, found in names.items()]
    return _first(reasons, 5, "; ", "; and ") or "no layer was found"


def _first(texts: Sequence[str], count: int, between: str, before_rest: str) -> str:
    more = f"{before_rest}{len(texts) - count} more" * (len(texts) > count)
    return between.join(texts[:count]) + more


def too_narrow(groups: Sequence[PlannedGroup], multiple_of: int) -> tuple[str, ...]:
    """Say which groups shrink to no multiple, because they are narrower than one."""
    narrow = _narrower(groups, multiple_of)
    more = f" and {len(narrow) - 5} more" * (len(narrow) > 5)
    said = f"multiple_of (={multiple_of}) is too much for {', '.join(narrow[:5])}{more}"
    return (f"{said}: kept to no multiple",) if narrow else ()


def check_multiples(groups: Sequence[PlannedGroup], multiple_of: int) -> None:
    """Raise PruneError where all groups that shrink are narrower than a multiple."""
    narrow = _narrower(groups, multiple_of)
    if narrow and len(narrow) == sum(group.pruned for group in groups):
        raise PruneError(
            f"multiple_of (={multiple_of}) is more than the width of every group that shrinks: "
            f"{', '.join(narrow[:5])}"
        )


def _narrower(groups: Sequence[PlannedGroup], multiple_of: int) -> list[str]:
    """Return the groups that shrink to no multiple, with their widths."""
    return [
        f"{group.name} ({group.width})"
        for group in groups
        if group.pruned and group.kept < group.width and group.kept % multiple_of
    ]


def _widths(
    group: ChannelGroup,
    layers: Sequence[str],
    keep: float | Mapping[str, float],
    excluded: str | None,
    multiple_of: int,
) -> tuple[int, int, str | None]:
    """Return the widths of a group: what it keeps, what is wanted, and why it stays, or None."""
    fraction, unnamed = _fraction(group.name, layers, keep)
    spared = excluded or unnamed
    wanted = group.width if spared else _round(group, fraction, multiple_of)
    if group.reason or spared:
        return group.width, wanted, (group.reason and str(group.reason)) or spared
    if wanted < group.width or fraction == 1:
        return wanted, wanted, None
    step = step_of(group, multiple_of)
    divisible = f" in multiples of {step}" * (step > 1)
    channels = "1 channel" if group.width == 1 else f"{group.width} channels"
    return wanted, wanted, f"{channels} cannot shrink to {fraction:.3g} of them{divisible}"


def _times(outputs: Pieces, group: int) -> int:
    """Return how often a layer makes each channel of a group."""
    return sum(piece.repeat for piece in outputs if piece.group == group) or 1


def _fraction(
    name: str, layers: Sequence[str], keep: float | Mapping[str, float]
) -> tuple[float, str | None]:
    if not isinstance(keep, Mapping):
        return keep, None
    if name in keep and name not in layers:  # such as conv1#2
        return keep[name], None
    named = {layer: keep[layer] for layer in layers if layer in keep}
    if len(set(named.values())) > 1:
        raise PruneError(f"keep names layers of one group with different fractions: {named}")
    around = [module for layer in layers if (module := within(layer, keep)) is not None]
    fractions = [*named.values(), *(keep[module] for module in around)]
    fractions += [keep[""]] if "" in keep else []
    return (fractions[0], None) if fractions else (1.0, "not named in keep")


def _excluded(
    structure: Structure, index: int, layers: Sequence[str], exclude: Sequence[str]
) -> str | None:
    """Say which of the layers that make or read a group's channels one by one is excluded."""
    if not exclude:
        return None
    group = structure.groups[index].name
    if group in exclude:  # such as conv1#2
        return f"{group} is excluded"
    others = structure.channelwise.values()
    members = [*layers, *(o.name for o in others if any(p.group == index for p in o.pieces))]
    found = next((name for name in members if within(name, exclude)), None)
    return found and f"{found} is excluded"


def step_of(group: ChannelGroup, multiple_of: int) -> int:
    """Return the number of which a group keeps a multiple."""
    step = lcm(group.blocks, multiple_of)
    return group.blocks if step > group.width else step


def _round(group: ChannelGroup, fraction: float, multiple_of: int) -> int:
    step = step_of(group, multiple_of)
    return min(group.width, max(step, round(fraction * group.width / step) * step))

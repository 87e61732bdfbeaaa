"""Which residual blocks to leave out beside narrower channels: by the change of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example, copied
from branchprune.graph.shortcut import put_shortcuts
from branchprune.graph.structure import Structure
from branchprune.planning import plan as by_share
from branchprune.planning.plan import Plan
from branchprune.planning.residual_blocks import Block, blocks, holding_none
from branchprune.targets.error_curves import RECONSTRUCTION, Init, MeasuredErrors
from branchprune.targets.goal import Met, as_amounts, check_target
from branchprune.targets.measurement import Measurement, halves
from branchprune.targets.plan import plan

TRIED = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 33, 41, 50)
"""Numbers of blocks that are left out, of which the best is taken."""
PATIENCE = 3
"""After so many numbers that are no better than one before no larger ones are tried."""


@dataclass(frozen=True, eq=False)
class Shallower:
    """A model without some of its blocks, and the widths at which it reaches a target.

    Attributes:
        model: The model without the blocks, at all its widths.
        plan: From there to the target.
        left_out: Paths of the blocks.
        change: The change of the output with both, fitted but not trained.
        tried: For each number of blocks that was tried that change, as pairs.
    """

    model: nn.Module = field(repr=False)
    plan: Plan = field(repr=False)
    left_out: tuple[str, ...]
    change: float
    tried: tuple[tuple[int, float], ...] = ()


@one_at_a_time
def shorten(
    model: nn.Module,
    example: Example,
    *,
    target: Mapping[str, float],
    batches: Iterable[Example],
    criterion: Init = RECONSTRUCTION,
    **options: Any,
) -> Shallower:
    """Choose blocks to leave out, and widths for what is left, for a target.

    ```python
    found = bp.shorten(model, x, target={"macs": 0.5}, batches=[images])
    blended = bp.attach(found.model, found.plan, "reconstruction", batches=[images])
    ```

    Blocks are ranked by how little the output changes without each alone, divided by the
    multiply-adds that go with it. For 0, 1, 2, 3, 4, 6, … of them the widths are chosen for the
    target, channels are cut and fitted on one half of the batches, and the change of the output is
    measured on the other: the least wins, be it with all blocks. Blocks stay in which `keep`,
    `exclude`, `inside` or `opaque` name something. (Chen, Zhao, "Shallowing deep networks", 2018,
    rank layers by classifiers of their features, and leave as many out as asked.)

    Args:
        model: The model; it is not changed.
        example: See `plan`.
        target: See `plan`; "macs" and "params" are shares of the dense model's or numbers,
            "latency_ms" is milliseconds, "memory" bytes.
        batches: See `plan`; at least two, or one of several examples.
        criterion: See `plan`.
        **options: Others of `plan`: `floor`, `exclude`, `multiple_of`, `runtime`, …

    Returns:
        `model` without the blocks, at all its widths; the `plan` from there; `left_out`, their
        paths; `change`, that of the output; and `tried`, that by number of blocks.

    Raises:
        PruneError: As `plan`; the target names a share of latency or memory.
    """
    check_target(target)
    given = MeasuredErrors(batches, criterion).batches
    whole = by_share.plan(model, example)
    asked = as_amounts(target, whole.before)
    choose = partial(
        plan, example=example, target=asked, batches=given, criterion=criterion, **options
    )
    keep = options.get("keep")
    shares = keep if isinstance(keep, Mapping) else {}
    named = [*shares, *options.get("exclude", ()), *options.get("opaque", ())]
    named += [options["inside"]] if options.get("inside") else []
    free = holding_none(blocks(model, example), named)
    return shortened(model, whole.structure, free, choose, given, criterion)


def shortened(
    model: nn.Module,
    structure: Structure,
    candidates: Sequence[Block],
    choose: Callable[[nn.Module], Plan],
    batches: Sequence[Example],
    criterion: Init,
) -> Shallower:
    """Choose blocks to leave out, and widths for what is left.

    Args:
        model: The model; it is not changed.
        structure: Its structure.
        candidates: The blocks of which some may be left out.
        choose: Chooses the widths of a model without some of its blocks; see `plan`.
        batches: Inputs; one half is fitted to, the other judges.
        criterion: See `plan`.

    Raises:
        PruneError: As `choose` for the whole model.
    """
    fit, judge = (*halves(batches), batches)[:2]
    dense = Measurement(model, structure, judge, [])
    order = ranked(model, structure, candidates, judge)
    found: list[Shallower] = []
    for count in [each for each in TRIED if each <= len(order)]:
        shallow = copied(model)
        put_shortcuts(shallow, {each.name: each.activation for each in order[:count]})
        try:
            planned = choose(shallow)
        except Met:
            if not found:
                raise
            break
        blended = fit_expand(attach(shallow, planned, criterion, batches=fit), fit)
        blended.alpha = 0.0
        small = Measurement(blended, structure, judge, [])
        names = tuple(each.name for each in order[:count])
        found.append(Shallower(shallow, planned, names, dense.changed.of(small.dense)))
        best = min(found, key=lambda each: each.change)
        if len(found) - found.index(best) > PATIENCE:
            break
    return replace(best, tried=tuple((len(each.left_out), each.change) for each in found))


def ranked(
    model: nn.Module, structure: Structure, candidates: Sequence[Block], batches: Sequence[Example]
) -> list[Block]:
    """Return blocks, those first without which the output changes least for what they cost.

    Args:
        model: The model.
        structure: Its structure.
        candidates: The blocks.
        batches: Inputs on which that is measured.
    """
    dense = Measurement(model, structure, batches, [])
    changes = {}
    for block in candidates:
        shallow = copied(model)
        put_shortcuts(shallow, {block.name: block.activation})
        changed = dense.changed.of(Measurement(shallow, structure, batches, []).dense)
        changes[block.name] = changed / block.macs
    return sorted(candidates, key=lambda each: changes[each.name])

"""Which residual blocks to leave out beside narrower channels: by the change of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.errors import PruneError
from branchprune.graph.exclusive import one_at_a_time
from branchprune.graph.inputs import Example, copied
from branchprune.graph.shortcut import put_shortcuts
from branchprune.graph.structure import Structure
from branchprune.planning import plan as by_share
from branchprune.planning.plan import Plan
from branchprune.planning.residual_blocks import Block, blocks, holding_none
from branchprune.targets.error_curves import RECONSTRUCTION, Init, MeasuredErrors
from branchprune.targets.goal import check_target
from branchprune.targets.measurement import Measurement, halves
from branchprune.targets.plan import plan

TRIED = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 33, 41, 50)
"""Numbers of blocks that are left out, of which the best is taken."""
PATIENCE = 3
"""After so many numbers that are no better than one before no larger ones are tried."""
FROM_DENSE = ("macs", "params")
"""What a share of a target is of: the dense model, not the shallower one."""


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

    model: nn.Module
    plan: Plan
    left_out: tuple[str, ...]
    change: float
    tried: tuple[tuple[int, float], ...]


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

    Blocks are ranked by how little the output changes without each alone, by the multiply-adds that
    go with it. For several numbers of them the widths are chosen for the target, channels are cut
    and fitted on one half of the batches, and the change of the output is measured on the other:
    the least wins, be it with all blocks. Blocks stay in which `keep`, `exclude`, `inside` or
    `opaque` name something.

    Args:
        model: The model; it is not changed.
        example: See `plan`.
        target: See `plan`; shares of "macs" and "params" are those of the dense model, a latency is
            in milliseconds, memory in bytes.
        batches: See `plan`; at least two, or one of several examples.
        criterion: See `plan`.
        **options: Others of `plan`: `floor`, `exclude`, `multiple_of`, `runtime`, …

    Raises:
        PruneError: See `plan`.
    """
    target = check_target(target)
    for what, most in target.items():
        if what not in FROM_DENSE and most < 1 and what != "latency_ms":
            instead = "latency_ms" if what == "latency" else "bytes"
            raise PruneError(
                f"target {what} (={most}) is a share, and here of the dense model that of "
                f"{' and '.join(FROM_DENSE)} alone is known: give {instead}"
            )
    given = MeasuredErrors(batches, criterion).batches
    whole = by_share.plan(model, example)
    asked = {
        what: most * getattr(whole.before, what) if what in FROM_DENSE and most < 1 else most
        for what, most in target.items()
    }
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
        choose: Chooses the widths of a model without some of its blocks, and raises where none
            are left to choose.
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
        except PruneError:
            if not found:
                raise
            break  # it meets the target as it is
        blended = fit_expand(attach(shallow, planned, criterion, batches=fit), fit)
        blended.alpha = 0.0
        small = Measurement(blended, structure, judge, [])
        names = tuple(each.name for each in order[:count])
        change = dense.changed.of(small.dense)
        tried = *((len(each.left_out), each.change) for each in found), (count, change)
        found.append(Shallower(shallow, planned, names, change, tried))
        best = min(found, key=lambda each: each.change)
        if len(found) - found.index(best) > PATIENCE:
            break
    return replace(best, tried=found[-1].tried)


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

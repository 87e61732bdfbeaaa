"""Is what an optimizer trains a blended model with all of its branch? Told at the first step.

An optimizer that was built before `attach`, or from `blended.model`, runs without an error and
trains a path that will be cut off.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from branchprune.blending.blended import Blended
from branchprune.blending.weight_snapshot import WeightSnapshot
from branchprune.errors import PruneError

NAMED = 3
"""So many parameters are named; the others are counted."""


def begin_training(blended: Blended, original: nn.Module) -> None:
    """Note that from here on a blended model is trained, and look at what trains it.

    Args:
        blended: The blended model, complete.
        original: The model, or blended model, that it was made from.
    """
    before = [weakref.ref(parameter) for parameter in original.parameters()]
    if isinstance(original, Blended):
        before += original.made_from
    blended.made_from, blended.at_attach = before, WeightSnapshot(blended)
    _WATCHED.append(_Watch(blended))


class _Watch:
    """Looks for the first optimizer that makes a step with a blended model, or its original."""

    def __init__(self, blended: Blended) -> None:
        self.blended = weakref.ref(blended, lambda _: self.end())
        self.others: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def end(self) -> None:
        """Look no more."""
        if self in _WATCHED:
            _WATCHED.remove(self)

    def look(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that is about to make a step."""
        blended = self.blended()
        if blended is None or optimizer in self.others:
            return
        held = _held([optimizer])
        if any(id(p) in held for p in blended.parameters()):
            self.end()
            _check_branch(blended, optimizer, held)
            return
        originals = [p for ref in blended.made_from if (p := ref()) is not None and id(p) in held]
        if not originals:
            self.others.add(optimizer)
        elif all(p.grad is None for p in originals) and _has_gradients(blended):
            self.end()
            raise PruneError(
                f"the optimizer ({type(optimizer).__name__}) was built before attach: it holds "
                "parameters of the model that was there then, not of the blended one, which alone "
                "has gradients: build it from blended.parameters()"
            )


_WATCHED: list[_Watch] = []


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        WeightSnapshot.optimizer_steps += 1
        for watch in tuple(_WATCHED):
            watch.look(optimizer)


# Once and for all: hooks may not come or go while an optimizer walks through them.
register_optimizer_step_pre_hook(_before_step)


def _has_gradients(module: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in module.parameters())


def _held(optimizers: Iterable[Optimizer]) -> set[int]:
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return {id(parameter) for group in groups for parameter in group["params"]}


def _branch(blended: Blended) -> dict[str, nn.Parameter]:
    """Return the parameters of the branch that are to learn, by name."""
    return {
        f"{part}.{name}": parameter
        for part in ("reduce", "expand", "twin", "private")
        for name, parameter in getattr(blended, part).named_parameters()
        if parameter.requires_grad
    }


def _check_branch(blended: Blended, optimizer: Optimizer, held: set[int]) -> None:
    """Raise or warn if an optimizer, with all others that there are, leaves parameters out."""
    branch = _branch(blended)
    missing = [name for name, p in branch.items() if id(p) not in held]
    if not missing:
        return
    everywhere = _held(each for each in gc.get_objects() if issubclass(type(each), Optimizer))
    missing = [name for name, p in branch.items() if id(p) not in everywhere]
    if not missing:
        return
    cut_off = [name for name in _wide_only(blended) if id(blended.get_parameter(name)) in held]
    idle = f", and holds {_some(cut_off)}, which nothing trains at alpha = 0" if cut_off else ""
    told = (
        f"the optimizer ({type(optimizer).__name__}) does not train {_some(missing)} of the "
        f"branch{idle}: build it from blended.parameters(), or set requires_grad to False of what "
        "is not to learn"
    )
    if len(missing) == len(branch):
        raise PruneError(told)
    warnings.warn(told, stacklevel=2)


def _wide_only(blended: Blended) -> Iterator[str]:
    """Yield the parameters of the wide path that have a narrow form of their own."""
    twins = {name for name, _ in blended.twin.named_parameters()}
    for name, _ in blended.model.named_parameters():
        if name in twins:
            yield f"model.{name}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")

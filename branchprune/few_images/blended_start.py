"""A start that is blended: the branch learns beside the dense model, whose weights are frozen.

Each example takes, for each group of channels, the wide path with a probability α that falls from 1
to 0 (as modules are replaced in BERT-of-Theseus, Xu et al., 2020, and as activations are quantised
in QDrop, Wei et al., 2022), in all groups together or in one after another; or all examples take
the wide path up to a depth, which costs less.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.bn_recalibration import batch_norms
from branchprune.few_images.head import Read, head_layers, makes_all_outputs, reading
from branchprune.few_images.learning import Learning, batches, descend
from branchprune.few_images.looks import Look, in_dtype, looks
from branchprune.few_images.matching import mismatch
from branchprune.few_images.optimizers import optimizer
from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import seeded

Drawn = Literal["sample", "prefix"]
Order = Literal["together", "input first", "robust first"]


def blended_start(
    blended: Blended,
    dense: nn.Module,
    images: Tensor,
    how: Learning,
    drawn: Drawn,
    order: Order = "together",
) -> Blended:
    """Return the branch after some blended steps, every α at 0.

    Args:
        blended: The blended model; it is not changed.
        dense: The dense model, in evaluation mode.
        images: What to learn from (N, …), on the device of both.
        how: Steps, learning rate and the like; what the head reads is matched, and "junctions"
            pulls the branch towards what every layer reads, too, where both paths meet.
        drawn: "sample": each example draws a path for each group; "prefix": a step draws how many
            groups, from the input on, are wide, and all others are narrow.
        order: With "sample", α falls in all groups "together", or in one after another: "input
            first", or "robust first", the group first that alone changes least of what is matched.
    """
    blended = copy.deepcopy(blended)
    if drawn == "sample":
        blended.mixing, blended.matching = "sample", float(how.match == "junctions")
    with seeded(how.seed, [images]), _branch_learning(blended):
        _blend(blended, dense, images, how, drawn, order)
    blended.alpha = 0.0
    return blended


def _blend(
    blended: Blended, dense: nn.Module, images: Tensor, how: Learning, drawn: Drawn, order: Order
) -> None:
    layers = [*head_layers(blended.model, blended.plan)]
    weights = [weight for weight in blended.parameters() if weight.requires_grad]
    moving = optimizer(how.optimizer, weights, how.learning_rate, how.weight_decay, how.steps)
    generator = torch.Generator().manual_seed(how.seed)
    with reading(blended.model, layers) as found, reading(dense, layers) as wanted:
        seen = looks(dense, wanted, batches(images, how), how.steps_a_look, how.dtype, generator)
        error = partial(_error, blended, found, how=how)
        groups = [*blended.alpha]
        if order == "robust first":
            groups = _robust_first(blended, partial(error, next(seen)))
        for step in range(1, how.steps + 1):
            if drawn == "prefix":
                blended.alpha = _depth(groups, 1 - step / how.steps, generator)
            elif order == "together":
                blended.alpha = 1 - step / how.steps
            else:
                blended.alpha = _in_turn(groups, step / how.steps)
            descend(error(next(seen)), *moving)


def _error(blended: Blended, found: Read, look: Look, how: Learning) -> Tensor:
    """Return how far what the head reads is from what it reads in the dense model."""
    for tensors in found.values():
        tensors.clear()
    part = partial(blended.program(training=True, fold=False), blended)
    with in_dtype(look.images, how.dtype):
        outputs = blended.run(part, look.images), look.outputs
    covered = makes_all_outputs(blended.plan, [*found])
    return mismatch("head", (found, look.read), outputs, covered=covered)


def _depth(groups: Sequence[str], alpha: float, generator: torch.Generator) -> dict[str, float]:
    """Return α of each group: 1 for the first of them, by as many draws, and 0 for all others."""
    wide = int((torch.rand(len(groups) - 1, generator=generator) < alpha).sum())
    return {name: float(place < wide) for place, name in enumerate(groups)}


def _in_turn(groups: Sequence[str], passed: float) -> dict[str, float]:
    """Return α of each group, which falls from 1 to 0 in one after the other, in equal times."""
    turns = passed * len(groups)
    return {name: min(max(1 + place - turns, 0.0), 1.0) for place, name in enumerate(groups)}


@torch.no_grad()
def _robust_first(blended: Blended, error: Callable[[], Tensor]) -> list[str]:
    """Return the groups by the error where each alone is narrow, the smallest first."""
    errors: dict[str, float] = {}
    for name in blended.alpha:
        blended.alpha = {each: float(each != name) for each in blended.alpha}
        errors[name] = float(error())
    return sorted(errors, key=errors.__getitem__)


@contextmanager
def _branch_learning(blended: Blended) -> Iterator[None]:
    """Let the branch alone learn, its norms by the statistics of each batch."""
    frozen = [weight for weight in blended.model.parameters() if weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(False)
        with training_mode(blended, False):
            for norm in batch_norms(blended.twin):
                norm.train()
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)

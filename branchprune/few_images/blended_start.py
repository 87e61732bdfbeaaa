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
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.bn_recalibration import batch_norms
from branchprune.errors import PruneError
from branchprune.few_images.head import Read, head_layers, makes_all_outputs, reading
from branchprune.few_images.learning import Learning, batches, descend
from branchprune.few_images.looks import Look, in_dtype, looks
from branchprune.few_images.matching import mismatch
from branchprune.few_images.optimizers import optimizer
from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import seeded

Drawn = Literal["sample", "prefix"]
Order = Literal["together", "input first"] | Sequence[str]


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
            first", or in the order of these names.

    Raises:
        PruneError: `order` is given with "prefix", which goes by the order of the network.
    """
    if drawn == "prefix" and order != "together":
        raise PruneError(f"order (={order!r}) goes with drawn='sample', not with 'prefix'")
    blended = copy.deepcopy(blended)
    if drawn == "sample":
        blended.mixing, blended.matching = "sample", float(how.match == "junctions")
    with seeded(how.seed, [images]), _branch_learning(blended):
        _blend(blended, dense, images, how, drawn, order)
    blended.alpha = 0.0
    return blended


def robust_first(blended: Blended, dense: nn.Module, images: Tensor, how: Learning) -> list[str]:
    """Return the groups of channels by how far the head is off where each alone is narrow.

    Args:
        blended: The blended model; it is not changed.
        dense: The dense model, in evaluation mode.
        images: What to learn from; one batch of views counts.
        how: What makes the views; see `Learning`.

    Returns:
        Their names, that with the smallest error first.
    """
    blended = copy.deepcopy(blended)
    errors: dict[str, float] = {}
    learning = _branch_learning(blended), _looking(blended, dense, images, how)
    with torch.no_grad(), seeded(how.seed, [images]), learning[0], learning[1] as looked:
        error = next(looked)
        for name in blended.alpha:
            blended.alpha = {each: float(each != name) for each in blended.alpha}
            errors[name] = float(error())
    return sorted(errors, key=errors.__getitem__)


def _blend(
    blended: Blended, dense: nn.Module, images: Tensor, how: Learning, drawn: Drawn, order: Order
) -> None:
    weights = [weight for weight in blended.parameters() if weight.requires_grad]
    moving = optimizer(how.optimizer, weights, how.learning_rate, how.weight_decay, how.steps)
    generator = torch.Generator().manual_seed(how.seed)
    groups = [*blended.alpha] if isinstance(order, str) else order
    with _looking(blended, dense, images, how) as errors:
        for step, error in enumerate(islice(errors, how.steps), 1):
            if drawn == "prefix":
                blended.alpha = _depth(groups, 1 - step / how.steps, generator)
            elif order == "together":
                blended.alpha = 1 - step / how.steps
            else:
                blended.alpha = _in_turn(groups, step / how.steps)
            descend(error(), *moving)


@contextmanager
def _looking(
    blended: Blended, dense: nn.Module, images: Tensor, how: Learning
) -> Iterator[Iterator[Callable[[], Tensor]]]:
    """Yield, for each look at a batch, what returns how far what the head reads is from the dense.

    It does so at the α that the blended model then has.
    """
    layers = [*head_layers(blended.model, blended.plan)]
    covered = makes_all_outputs(blended.plan, layers)
    generator = torch.Generator().manual_seed(how.seed)

    def error(look: Look, found: Read) -> Tensor:
        for tensors in found.values():
            tensors.clear()
        part = partial(blended.program(training=True, fold=False), blended)
        with in_dtype(look.images, how.dtype):
            outputs = blended.run(part, look.images), look.outputs
        return mismatch("head", (found, look.read), outputs, covered=covered)

    with reading(blended.model, layers) as found, reading(dense, layers) as wanted:
        seen = looks(dense, wanted, batches(images, how), how.steps_a_look, how.dtype, generator)
        yield (partial(error, look, found) for look in seen)


def _depth(groups: Sequence[str], alpha: float, generator: torch.Generator) -> dict[str, float]:
    """Return α of each group: 1 for the first of them, by as many draws, and 0 for all others."""
    wide = int((torch.rand(len(groups) - 1, generator=generator) < alpha).sum())
    return {name: float(place < wide) for place, name in enumerate(groups)}


def _in_turn(groups: Sequence[str], passed: float) -> dict[str, float]:
    """Return α of each group, which falls from 1 to 0 in one after the other, in equal times."""
    turns = passed * len(groups)
    return {name: min(max(1 + place - turns, 0.0), 1.0) for place, name in enumerate(groups)}


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

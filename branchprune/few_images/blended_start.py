"""A start that is blended: the branch learns beside the dense model, whose weights are frozen.

Each example takes, for each group of channels, the wide path with a probability α that falls from 1
to 0 (as modules are replaced in BERT-of-Theseus, Xu et al., 2020, and as activations are quantised
in QDrop, Wei et al., 2022); or all examples take the wide path up to a depth, which costs less.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.bn_recalibration import batch_norms
from branchprune.few_images.head import head_layers, makes_all_outputs, reading
from branchprune.few_images.learning import Learning, batches, descend
from branchprune.few_images.looks import in_dtype, looks
from branchprune.few_images.matching import mismatch
from branchprune.few_images.optimizers import optimizer
from branchprune.graph.inputs import training_mode
from branchprune.graph.random_generators import seeded

Drawn = Literal["sample", "prefix"]


def blended_start(
    blended: Blended, dense: nn.Module, images: Tensor, how: Learning, drawn: Drawn
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
    """
    blended = copy.deepcopy(blended)
    if drawn == "sample":
        blended.mixing, blended.matching = "sample", float(how.match == "junctions")
    with seeded(how.seed, [images]), _branch_learning(blended):
        _blend(blended, dense, images, how, drawn)
    blended.alpha = 0.0
    return blended


def _blend(blended: Blended, dense: nn.Module, images: Tensor, how: Learning, drawn: Drawn) -> None:
    layers = [*head_layers(blended.model, blended.plan)]
    covered = makes_all_outputs(blended.plan, layers)
    weights = [weight for weight in blended.parameters() if weight.requires_grad]
    moving = optimizer(how.optimizer, weights, how.learning_rate, how.weight_decay, how.steps)
    generator = torch.Generator().manual_seed(how.seed)
    with reading(blended.model, layers) as found, reading(dense, layers) as wanted:
        seen = looks(dense, wanted, batches(images, how), how.steps_a_look, how.dtype, generator)
        for step in range(1, how.steps + 1):
            alpha = 1 - step / how.steps
            blended.alpha = _depth(blended, alpha, generator) if drawn == "prefix" else alpha
            look = next(seen)
            for tensors in found.values():
                tensors.clear()
            part = partial(blended.program(training=True, fold=False), blended)
            with in_dtype(look.images, how.dtype):
                outputs = blended.run(part, look.images), look.outputs
            loss = mismatch("head", (found, look.read), outputs, covered=covered)
            descend(loss, *moving)


def _depth(blended: Blended, alpha: float, generator: torch.Generator) -> dict[str, float]:
    """Return α of each group: 1 for the first of them, by as many draws, and 0 for all others."""
    groups = [*blended.alpha]
    wide = int((torch.rand(len(groups) - 1, generator=generator) < alpha).sum())
    return {name: float(place < wide) for place, name in enumerate(groups)}


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

"""How much of what layers read, while 0 < α < 1, comes from the branch.

Where both paths are of one size that is 1 − α. A branch that carries the prediction at a small α
has a share near that; one that has faded, or that the wide path has outgrown, has less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from branchprune.blending.blended import Blended
from branchprune.blending.projections import Expand
from branchprune.graph.inputs import Example, call, training_mode

Sizes = dict[str, list[tuple[float, float]]]


@torch.no_grad()
def branch_shares(blended: Blended, example: Example) -> dict[str, float]:
    """Return `‖(1 − α) B ũ‖ / (‖(1 − α) B ũ‖ + ‖α u‖)` for each tensor read from both paths.

    B ũ is what the branch offers, through its linear end B, and u what the wide path does; norms
    are over a batch and the channels that shrink. Computed in evaluation mode, in which both are
    added; of private norms they are the shares that this sum would have.

    Args:
        blended: A blended model; nothing in it changes.
        example: Its input: a tensor, or a tuple or dictionary of arguments.

    Returns:
        Shares in [0, 1], by the name in `blended.expand`: that of the first layer that reads the
        tensor. Without those at which every α is 0 or 1, and those of which both paths are 0.
    """
    if not any(0 < alpha < 1 for alpha in blended.alpha.values()):
        return {}
    with _measured(blended) as sizes, training_mode(blended, False), _eager():
        call(blended, example)
    totals = {
        name: [sum(path) ** 0.5 for path in zip(*found, strict=True)]
        for name, found in sizes.items()
        if found
    }
    return {
        name: branch / (branch + wide) for name, (branch, wide) in totals.items() if branch + wide
    }


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled code as it was written, for a `with` block: compiled code has no hooks."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _measured(blended: Blended) -> Iterator[Sizes]:
    """Collect the squared norms of both paths wherever they meet, for a `with` block."""
    sizes: Sizes = defaultdict(list)
    ends = {name: end for name, end in blended.expand.named_modules() if isinstance(end, Expand)}
    hooks = [
        end.register_forward_hook(partial(_measure, sizes[name])) for name, end in ends.items()
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def _measure(
    found: list[tuple[float, float]], end: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    """Note the squared norms of what each path gives to the channels of groups between 0 and 1."""
    assert isinstance(end, Expand)
    if len(inputs) < 3:
        return
    narrow, wide, alphas = inputs[:3]
    branches = end.cut(end.forward(narrow, torch.zeros_like(wide), alphas), "wide")
    others = end.cut(end.forward(torch.zeros_like(narrow), wide, alphas), "wide")
    for (branch, (piece, _)), (other, _) in zip(branches, others, strict=True):
        if piece.branch is not None and 0 < alphas[piece.branch] < 1:
            found.append((_squared(branch), _squared(other)))


def _squared(x: Tensor) -> float:
    high = torch.promote_types(x.dtype, torch.float32)
    return float(x.to(high).square().sum())

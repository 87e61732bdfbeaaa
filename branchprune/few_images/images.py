"""Images that are learnt from, and those that are held out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


def divided(images: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the images to learn from, and at least one that is held out, at random.

    Args:
        images: Tensor of shape (N, …), N at least 2.
        share: Share of the images to hold out, rounded.
        generator: Draws which.
    """
    order = torch.randperm(len(images), generator=generator)
    held_out = max(1, round(share * len(images)))
    return images[order[held_out:]], images[order[:held_out]]

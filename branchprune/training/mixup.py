"""Mixup: training on weighted means of two examples and of their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """How the examples of a batch are mixed (Zhang et al., "mixup", 2018).

    Attributes:
        share: Share of an example itself, in [0, 1].
        partner: The example that is mixed in, for each, shape (N,).
    """

    share: float
    partner: Tensor

    @classmethod
    def draw(cls, alpha: float, batch: Tensor) -> Mixup:
        """Draw a share from Beta(α, α) and partners, with torch's generator on the CPU.

        Args:
            alpha: α, positive.
            batch: The examples, along dimension 0.
        """
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        return cls(share, torch.randperm(len(batch)).to(batch.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Return examples, or their logits, mixed: shape (N, …), in the memory format of x."""
        return torch.lerp(torch.empty_like(x).copy_(x[self.partner]), x, self.share)

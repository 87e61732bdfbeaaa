"""What a function gave for each example the first times it came: later it costs nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from branchprune.errors import PruneError


class Memory:
    """The mean of a function's outputs for the first views of each example.

    Args:
        looks: How many views of an example the function is asked for.

    Attributes:
        counts: How many it was asked for by now, int64 (examples,).
        sums: The sum of what it gave, float32 (examples, …).
    """

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.counts, self.sums = torch.zeros(0, dtype=torch.long), torch.zeros(0)

    def recall(self, x: Tensor, numbers: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a function's outputs, or their mean where it was asked often enough.

        Args:
            x: Views of examples, along dimension 0, shape (N, …).
            numbers: Which examples these are, int64 (N,), from 0.
            function: What makes of n examples n outputs, each of which depends on its example
                alone.

        Raises:
            PruneError: It does not return a tensor with an output an example.
        """
        self._make_room(int(numbers.max()) + 1, x.device)
        new = self.counts[numbers] < self.looks
        known = self.counts[numbers].clamp(min=1)
        if not new.any():
            return self.sums[numbers] / _like(known, self.sums)
        outputs, asked = function(x if new.all() else x[new]), int(new.sum())
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != (asked,):
            raise PruneError(f"a teacher that remembers must give an output for each of {asked}")
        outputs = outputs.float()
        if self.sums.dim() == 1:
            self.sums = outputs.new_zeros(len(self.counts), *outputs.shape[1:])
        said = self.sums[numbers] / _like(known, self.sums)
        said[new] = outputs
        self.sums.index_add_(0, numbers[new], outputs)
        self.counts.index_add_(0, numbers[new], torch.ones_like(numbers[new]))
        return said

    def _make_room(self, examples: int, device: torch.device) -> None:
        self.counts, self.sums = self.counts.to(device), self.sums.to(device)
        more = max(examples, 2 * len(self.counts)) - len(self.counts)
        if examples > len(self.counts):
            self.counts, self.sums = (
                torch.cat([known, known.new_zeros(more, *known.shape[1:])])
                for known in (self.counts, self.sums)
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, for a checkpoint."""
        return {"counts": self.counts.cpu().clone(), "sums": self.sums.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Remember what a checkpoint holds."""
        self.counts, self.sums = state["counts"].clone(), state["sums"].clone()


def _like(counts: Tensor, sums: Tensor) -> Tensor:
    return counts.view(-1, *[1] * (sums.dim() - 1))

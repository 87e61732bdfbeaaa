"""A cache of logits: a teacher is asked about the first views of each example alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from branchprune.errors import PruneError, whole


class LogitCache:
    """The mean of a function's outputs for the first views of each example.

    It holds an output, as float32, for every number up to the highest, and again as many.

    Args:
        looks: How many views of an example the function is asked for.

    Attributes:
        counts: How many it was asked for by now, int64 (examples,).
        sums: The sum of what it gave, float32 (examples, …); None before it gave anything.

    Raises:
        PruneError: `looks` is not a whole number of at least 1.
    """

    def __init__(self, looks: int) -> None:
        whole("looks", looks, 1)
        self.looks = looks
        self.counts = torch.zeros(0, dtype=torch.long)
        self.sums: Tensor | None = None

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
        if self.sums is not None and not new.any():
            return self._mean(numbers, self.sums)
        outputs, asked = function(x if new.all() else x[new]), int(new.sum())
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != (asked,):
            got = [*outputs.shape] if isinstance(outputs, Tensor) else type(outputs).__name__
            raise PruneError(
                f"looks (={self.looks}): what is remembered must be a tensor with an output for "
                f"each of {asked} examples, not {got}"
            )
        outputs = outputs.float()
        if self.sums is None:
            self.sums = outputs.new_zeros(len(self.counts), *outputs.shape[1:])
        said = self._mean(numbers, self.sums)
        said[new] = outputs
        self.sums.index_add_(0, numbers[new], outputs)
        self.counts.index_add_(0, numbers[new], torch.ones_like(numbers[new]))
        return said

    def close(self) -> None:
        """Ask the function no more; the mean of nothing is 0, once it gave anything."""
        self.looks = 0

    def _make_room(self, examples: int, device: torch.device) -> None:
        more = max(examples, 2 * len(self.counts)) - len(self.counts)
        if examples <= len(self.counts):
            more = 0
        self.counts = _longer(self.counts.to(device), more)
        if self.sums is not None:
            self.sums = _longer(self.sums.to(device), more)

    def _mean(self, numbers: Tensor, sums: Tensor) -> Tensor:
        counts = self.counts[numbers].clamp(min=1)
        return sums[numbers] / counts.view(-1, *[1] * (sums.dim() - 1))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, for a checkpoint."""
        kept = {"counts": self.counts} | ({} if self.sums is None else {"sums": self.sums})
        return {name: value.cpu().clone() for name, value in kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Remember what a checkpoint holds."""
        kept = {name: value.clone() for name, value in state.items()}
        self.counts, self.sums = kept["counts"], kept.get("sums")


def _longer(values: Tensor, more: int) -> Tensor:
    if not more:
        return values
    return torch.cat([values, values.new_zeros(more, *values.shape[1:])])

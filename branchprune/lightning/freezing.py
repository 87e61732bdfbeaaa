"""When the original layers learn: from the start, once α is small enough, or never."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from branchprune.blending.blended import Blended
from branchprune.errors import PruneError


def originals_learn(thaw_at: float | None, alphas: Iterable[float]) -> bool:
    """Return whether the original layers learn while groups have these α.

    Args:
        thaw_at: See `BranchPruning`.
        alphas: α of each group.
    """
    return thaw_at is not None and max(alphas) <= thaw_at


class Freezing:
    """Freezes the original layers, and lets those learn again that did before.

    Args:
        thaw_at: See `BranchPruning`.

    Raises:
        PruneError: `thaw_at` is no α.
    """

    def __init__(self, thaw_at: float | None) -> None:
        if thaw_at is not None and not 0 <= thaw_at <= 1:
            raise PruneError(f"thaw_at (={thaw_at}) must be in [0, 1], or None")
        self.thaw_at = thaw_at
        self.parameters: list[nn.Parameter] = []
        self.blended: Blended | None = None

    def begin(self, blended: Blended, ranks: int) -> None:
        """Note which parameters learn.

        Args:
            blended: The blended model.
            ranks: Number of processes that train it.
        """
        self.parameters = [p for p in blended.model.parameters() if p.requires_grad]
        self.blended = blended if ranks > 1 else None

    def move(self, alphas: Iterable[float]) -> None:
        """Freeze the original layers or let them learn, as α says."""
        if self.thaw_at != 1:
            self._set(originals_learn(self.thaw_at, alphas))

    def end(self) -> None:
        """Let everything learn that did when this began."""
        self._set(True)

    def _set(self, learn: bool) -> None:
        if self.blended is not None:
            self.blended.originals_held = not learn
            return
        for parameter in self.parameters:
            parameter.requires_grad_(learn)

"""Pruning in rounds: remove channels, fine-tune, and again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from branchprune.errors import PruneError, whole
from branchprune.planning.plan import Plan

CUBIC = "cubic"


@dataclass
class RoundsConfig:
    """Prune in rounds, each from the small model of the one before.

    Args:
        max_drop: The rounds end when the validation metric of the small model is worse than the
            dense model's by more than this; that round does not count. Null: after the last.
        count: The most rounds.
        gradual: Reach `keep` with the last round, instead of keeping that much in each. True: in
            equal factors; "cubic": most channels go in the first rounds, what is left to go falls
            by a cubic (gradual pruning, Zhu, Gupta, "To prune, or not to prune", 2017).
    """

    max_drop: float | None = 0.04
    count: int = 30
    gradual: bool | Literal["cubic"] = False

    def __post_init__(self) -> None:
        whole("rounds.count", self.count, 1)
        if self.gradual not in (True, False, CUBIC):
            raise PruneError(f"rounds.gradual (={self.gradual!r}) must be true, false or {CUBIC}")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise PruneError(f"rounds.max_drop (={self.max_drop}) must be a number, or null")

    @property
    def foreseeable(self) -> bool:
        """Whether it is known before the training how many there will be, and how wide each."""
        return bool(self.gradual) and self.max_drop is None

    def keeps(self, lost: float) -> bool:
        """Return whether a round that has lost so much of the metric counts."""
        return self.max_drop is None or lost <= self.max_drop

    def shares(self, whole: Plan, now: Plan, number: int) -> dict[str, float]:
        """Return what to keep of each group as it is now, to be where a gradual round ends.

        Args:
            whole: From the dense model to the last round.
            now: Of the model as it is.
            number: Of the round, from 1.
        """
        widths = {group.name: group.width for group in now.groups}
        found = {}
        for group in (whole.groups[i] for i in whole.pruned):
            width = round(self._width(group.width, group.kept, number / self.count))
            if width < widths[group.name]:
                found[group.name] = width / widths[group.name]
        return found

    def _width(self, width: int, kept: int, progress: float) -> float:
        """Return the width of a group when a part of the way, in (0, 1], has been gone."""
        if self.gradual == CUBIC:
            return kept + (width - kept) * (1 - progress) ** 3
        return float(width * (kept / width) ** progress)

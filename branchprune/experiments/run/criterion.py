"""Which channels stay."""

from __future__ import annotations

from dataclasses import dataclass

from branchprune.blending.attach import Init
from branchprune.criteria.named import CALIBRATED, CRITERIA, MADE
from branchprune.errors import PruneError, whole
from branchprune.graph.import_path import function_at


@dataclass
class CriterionConfig:
    """Choose which channels stay, and what a branch starts from.

    Args:
        name: "random", the name of a criterion ("l1", …), or its import path.
        calibration: Training batches that the criterion sees: "taylor", "fisher" (of every example
            alone) and "obd" need gradients of the loss, "discrimination" the classes, "apoz",
            "entropy", "hrank" and "reconstruction" what layers read.
        fit: Training batches on which the branch is fitted to what it replaces, by least squares
            (see `fit_expand`), before it learns or is collapsed; 0: none.
    """

    name: str = "l1"
    calibration: int = 0
    fit: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration", "fit"):
            whole(f"criterion.{name}", getattr(self, name))

    def check_batches(self) -> None:
        """Raise PruneError for a criterion that sees batches, and has none."""
        if self.name in CALIBRATED and not self.calibration:
            raise PruneError(
                f"criterion.name (={self.name!r}) sees criterion.calibration (=0) batches: set some"
            )

    def init(self) -> Init:
        """Return what `attach` takes as `init`, or the name of what is yet to be made.

        Raises:
            PruneError: `name` is no criterion.
        """
        known = (*CRITERIA, *MADE)
        if self.name in known:
            return self.name
        if "." not in self.name:
            raise PruneError(
                f"criterion.name (={self.name!r}) must be one of {', '.join(known)}, or an import "
                "path"
            )
        return function_at(self.name, "criterion.name")

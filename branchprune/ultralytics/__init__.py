"""For the trainers of ultralytics: YOLO models are pruned while they train.

Nothing of ultralytics is imported: these are classes to put before one of its trainers.
"""

from branchprune.ultralytics.trainer import BranchPruning, KeepWidths

__all__ = ["BranchPruning", "KeepWidths"]

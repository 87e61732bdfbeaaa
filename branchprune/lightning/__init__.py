"""Lightning: tasks for classification and reconstruction, and the callback that prunes."""

from branchprune.lightning.callback import BranchPruning
from branchprune.lightning.finite import FiniteLoss
from branchprune.lightning.progress import StageProgress
from branchprune.lightning.tasks import ClassificationTask, ReconstructionTask

__all__ = [
    "BranchPruning",
    "ClassificationTask",
    "FiniteLoss",
    "ReconstructionTask",
    "StageProgress",
]

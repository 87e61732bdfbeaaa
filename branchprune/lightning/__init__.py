"""Lightning: tasks for classification and reconstruction, and the callback that prunes."""

from branchprune.lightning.callback import BranchPruning
from branchprune.lightning.progress import StageProgress
from branchprune.lightning.tasks import ClassificationTask, ReconstructionTask
from branchprune.lightning.vitals import Vitals

__all__ = ["BranchPruning", "ClassificationTask", "ReconstructionTask", "StageProgress", "Vitals"]

"""Lightning: tasks for classification, reconstruction and GANs, and the callback that prunes."""

from branchprune.lightning.adversarial import AdversarialTask
from branchprune.lightning.callback import BranchPruning
from branchprune.lightning.epoch_checkpoint import EpochCheckpoint
from branchprune.lightning.progress import StageProgress
from branchprune.lightning.reconstructions import Reconstructions
from branchprune.lightning.tasks import ClassificationTask, ReconstructionTask
from branchprune.lightning.training_cost import TrainingCost
from branchprune.lightning.vitals import Vitals

__all__ = [
    "AdversarialTask",
    "BranchPruning",
    "ClassificationTask",
    "EpochCheckpoint",
    "ReconstructionTask",
    "Reconstructions",
    "StageProgress",
    "TrainingCost",
    "Vitals",
]

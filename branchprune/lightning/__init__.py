"""Lightning: tasks for classification, reconstruction and GANs, and the callback that prunes."""

from branchprune.experiments.run.callbacks.epoch_checkpoint import EpochCheckpoint
from branchprune.experiments.run.callbacks.progress import StageProgress
from branchprune.experiments.run.callbacks.reconstructions import Reconstructions
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.lightning.callback import BranchPruning
from branchprune.lightning.loss_guard import Vitals
from branchprune.training.adversarial import AdversarialTask
from branchprune.training.tasks import ClassificationTask, ReconstructionTask

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

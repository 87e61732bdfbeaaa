"""For a Trainer of your own: the callback that prunes, and tasks that work with it as they are."""

from branchprune.lightning.callback import BranchPruning
from branchprune.lightning.loss_guard import LossGuard
from branchprune.training.adversarial import AdversarialTask
from branchprune.training.batch_keys import Keys
from branchprune.training.tasks import ClassificationTask, ReconstructionTask

__all__ = [
    "AdversarialTask",
    "BranchPruning",
    "ClassificationTask",
    "Keys",
    "LossGuard",
    "ReconstructionTask",
]

"""Every mistake of a configuration that shows before anything is written or trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pytorch_lightning import LightningDataModule, LightningModule

from branchprune.criteria.named import FIRST_ORDER
from branchprune.errors import PruneError
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.exporting import check_export
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.one_line import told_in_one_line
from branchprune.experiments.run.pipeline import Pruning
from branchprune.experiments.run.results_file import check_appendable
from branchprune.experiments.run.stages import Stages
from branchprune.planning.plan import Plan
from branchprune.training.batch_keys import keys_of
from branchprune.training.task import Task


def check(config: RunConfig, stages: Stages) -> tuple[Pruning, Plan]:
    """Read a batch, plan, and look at the tasks and what they log.

    Args:
        config: The configuration; its model gets the weights of a checkpoint.
        stages: They learn what the batches are like.

    Returns:
        How to prune, and the first plan.

    Raises:
        PruneError: Something is wrong.
    """
    if config.dense.epochs < 1 and config.dense.checkpoint is None:
        raise PruneError(f"dense.epochs (={config.dense.epochs}) without a checkpoint")
    if not config.fast:
        check_appendable(config.results_file)
    if config.dense.checkpoint is not None:
        load_weights(config.model, config.dense.checkpoint)
    with told_in_one_line("data"):
        batch = first_batch(config.data, "train")
    with told_in_one_line("task"):
        task = config.task(config.model)
        stages.keys = keys_of(task)
        method = Pruning(config, stages.keys.input_of(batch)[:1].cpu())
    with told_in_one_line("model, or prune"):
        planned = method.check()
    _check_teaching(config, task)
    check_export(config, task)
    with told_in_one_line("task"):
        logged = stages.judge(task, batches=1)["val"]
        prune_task = config.prune_task(config.model)
        _check_slope(config, prune_task)
        stages.judge(prune_task, batches=1)
        for each in (task, prune_task):
            if isinstance(each, Task):
                each.make_optimizer()
                each.check_batch(batch)
    _check_monitor(config, logged)
    return method, planned


def _check_teaching(config: RunConfig, task: LightningModule) -> None:
    """Raise if the dense training would learn what only a trained model or a branch can teach."""
    weight, start = getattr(task, "teacher_weight", 0), config.dense.checkpoint
    if weight and config.dense.epochs and start is None:
        raise PruneError(
            f"task.teacher_weight (={weight}): the dense training would learn from its own "
            "random weights; set prune.task.teacher_weight"
        )
    if getattr(task, "feature_weight", 0) and config.dense.epochs:
        raise PruneError(
            f"task.feature_weight (={task.feature_weight}): a dense model has no branches; "
            "set prune.task.feature_weight"
        )


def _check_slope(config: RunConfig, prune_task: LightningModule) -> None:
    """Raise if a criterion goes by the gradients of a loss that the dense model cannot lessen."""
    criterion, prune = config.prune.criterion, config.prune
    trained = prune.depth is not None or prune.sparsify is not None or prune.rounds is not None
    if criterion is None or criterion.name not in FIRST_ORDER or trained:
        return  # what has been trained meanwhile differs from its teacher
    if getattr(prune_task, "teacher_weight", 0) == 1:
        raise PruneError(
            f"prune.criterion.name (={criterion.name!r}) goes by gradients, and from its teacher "
            "alone the dense model, which is the teacher, has none: prune.task.teacher_weight (=1) "
            "must be less"
        )


def _check_monitor(config: RunConfig, logged: Collection[str]) -> None:
    """Raise if a plateau watches what the task does not log."""
    monitor = config.prune.blend and config.prune.blend.monitor
    if monitor and monitor not in {*logged, *(f"{name}_branch" for name in logged)}:
        raise PruneError(
            f"monitor (={monitor!r}) is not logged by the task; it logs {', '.join(sorted(logged))}"
            ", and each for the branch alone as NAME_branch"
        )


def first_batch(data: LightningDataModule, split: Literal["train", "test"]) -> Any:
    """Return the first batch of a split.

    Raises:
        PruneError: There is none.
    """
    data.setup("test" if split == "test" else "fit")
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    for batch in loader:
        return batch
    raise PruneError(f"data ({type(data).__name__}): {split}_dataloader() gives no batch")

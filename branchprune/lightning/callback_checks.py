"""Do the arguments of `BranchPruning` go together, with the trainer, and with its callbacks?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torch.optim.swa_utils import AveragedModel

from branchprune.blending.schedules import Plateau, Schedule
from branchprune.errors import PruneError


def plateaus(schedule: Schedule) -> list[Plateau]:
    """Return the holds of a schedule that watch a metric."""
    holds = (schedule.hold, schedule.final_hold)
    return [hold for hold in holds if isinstance(hold, Plateau)]


def check_options(
    schedule: Schedule,
    monitor: str | None,
    restore_best: str | None,
    learning_rate: str,
    thaw_at: float | None,
    batches: Mapping[str, int],
) -> None:
    """Check arguments of `BranchPruning`, which says what they are.

    Args:
        schedule: See `BranchPruning`.
        monitor: See `BranchPruning`.
        restore_best: See `BranchPruning`.
        learning_rate: See `BranchPruning`.
        thaw_at: See `BranchPruning`.
        batches: Those that are numbers of batches, by name.

    Raises:
        PruneError: One is wrong, or they do not go together.
    """
    if restore_best not in (None, "max", "min"):
        raise PruneError(f"restore_best (={restore_best!r}) must be 'max', 'min' or None")
    if thaw_at != 1 and schedule.levels[0] == 1:
        raise PruneError(f"thaw_at (={thaw_at}): nothing learns at the first level, alpha = 1")
    if learning_rate not in ("keep", "restart"):
        raise PruneError(f"learning_rate (={learning_rate!r}) must be 'keep' or 'restart'")
    for name, count in batches.items():
        if count < 0:
            raise PruneError(f"{name} (={count}) must be a number of batches")
    waits = plateaus(schedule)
    if (waits or restore_best) and monitor is None:
        raise PruneError("monitor (=None) must name a metric: it decides how levels end")
    if "loss" in (monitor or "") and any(hold.mode == "max" for hold in waits):
        raise PruneError(f"monitor (={monitor!r}) is a loss: use Plateau(mode='min')")


def check_epochs(trainer: Trainer, schedule: Schedule, restores: bool) -> None:
    """Check that a trainer validates as often, and trains as long, as a schedule needs.

    Where it may end too early, a warning says so.

    Args:
        trainer: The trainer.
        schedule: The schedule.
        restores: Whether levels end with the weights of their best epoch.

    Raises:
        PruneError: Levels are decided by a metric, and it is not computed in every epoch.
    """
    every, limit = trainer.check_val_every_n_epoch, trainer.max_epochs
    if (plateaus(schedule) or restores) and every != 1:
        raise PruneError(f"check_val_every_n_epoch (={every}) must be 1: it decides on levels")
    if limit not in (None, -1) and limit < schedule.max_epochs:
        rank_zero_warn(
            f"max_epochs (={limit}) may end training before the schedule does, which takes up "
            f"to {schedule.max_epochs}"
        )


def check_order(trainer: Trainer, pruning: Callback, module: LightningModule) -> None:
    """Check that no callback before this one holds a copy of the module, such as an average.

    Args:
        trainer: The trainer, which sets up its callbacks in their order.
        pruning: The callback that is about to attach the branches.
        module: The module.

    Raises:
        PruneError: A callback before it has a copy, in which there will be no branches.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in takewhile(lambda each: each is not pruning, callbacks):
        if any(_is_copy(value, module) for value in vars(callback).values()):
            name = type(callback).__name__
            raise PruneError(
                f"callbacks: {name} has copied the network before the branches are attached: put "
                f"{name} behind {type(pruning).__name__}"
            )


def _is_copy(value: object, module: nn.Module) -> bool:
    alike = isinstance(value, AveragedModel | type(module))
    return alike and value is not module

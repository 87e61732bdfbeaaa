"""The callback that prunes while a Trainer trains."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from branchprune.blended import Blended
from branchprune.branches import Init, attach
from branchprune.calls import Example
from branchprune.collapsing import collapse_with_error
from branchprune.errors import PruneError
from branchprune.lightning.branch_validation import validate_branch
from branchprune.lightning.graft import Graft
from branchprune.lightning.vitals import Vitals
from branchprune.planning import Plan, plan
from branchprune.profiling import count_macs
from branchprune.schedules import Plateau, Schedule

CHARTS = {
    "alpha": {"all groups": ["Multiline", ["alpha/.*"]]},
    "metric": {"blended and branch alone": ["Multiline", ["metric/.*"]]},
}
"""TensorBoard's custom scalar charts."""


class BranchPruning(Vitals):
    """Attach branches before training, move α along a schedule, log it, collapse at the end.

    ```python
    pruning = BranchPruning(bp.Schedule(bp.steps(0.1), hold=2), keep=0.5, example=x)
    trainer = Trainer(max_epochs=pruning.schedule.max_epochs, callbacks=[pruning])
    trainer.fit(module, data)      # module.model is now the small network
    ```

    At every validation each metric `name` is logged a second time as `name_branch`: that of the
    branch alone, with α forced to 0. The callback works with LightningModules of
    `pytorch_lightning` and of `lightning.pytorch`.

    Args:
        schedule: α over the epochs.
        keep: See `plan`.
        exclude: See `plan`.
        multiple_of: See `plan`.
        inside: See `plan`.
        opaque: See `plan`.
        init: See `attach`.
        example: See `plan`; None: the module's `example_input_array`, or the first image of the
            data module's training data.
        target: Path of the network in the LightningModule, "" for its own `forward`; None: its
            only child with layers, else its own `forward`.
        monitor: Metric that a `Plateau` watches, such as "metric/val_acc_branch".
        learning_rate: At each new α "keep" the learning rate going, or "restart" it and its
            schedulers.
        recalibrate: Number of recent training batches from which BatchNorm takes its statistics
            when the branch alone is validated; 0: those of the blend, which make the branch look
            far worse than it is.
        collapse: Collapse at the end.

    Attributes:
        plan: The plan, once training has begun.
        blended: The blended model, once training has begun.
        small: The collapsed model, once training has ended.
        collapse_error: Relative error of the collapse in float64.

    Raises:
        PruneError: An argument is wrong; the monitored metric is not logged; the loss is not a
            number (the step and α are named, and no weight has been changed by it).
    """

    def __init__(
        self,
        schedule: Schedule,
        keep: float | Mapping[str, float] = 0.5,
        *,
        exclude: Sequence[str] = (),
        multiple_of: int = 1,
        inside: str = "",
        opaque: Sequence[str] = (),
        init: Init = "l1",
        example: Example | None = None,
        target: str | None = None,
        monitor: str | None = None,
        learning_rate: Literal["keep", "restart"] = "keep",
        recalibrate: int = 16,
        collapse: bool = True,
    ) -> None:
        if learning_rate not in ("keep", "restart"):
            raise PruneError(f"learning_rate (={learning_rate!r}) must be 'keep' or 'restart'")
        if recalibrate < 0:
            raise PruneError(f"recalibrate (={recalibrate}) must be a number of batches")
        self.schedule, self.keep, self.exclude = schedule, keep, exclude
        self.multiple_of, self.inside, self.opaque = multiple_of, inside, opaque
        self.init, self.example, self.target = init, example, target
        self.monitor, self.learning_rate, self.collapses = monitor, learning_rate, collapse
        self.recent: deque[Example] = deque(maxlen=recalibrate)
        if self._waits() and monitor is None:
            raise PruneError("monitor (=None) must name the metric that the Plateau watches")
        if "loss" in (monitor or "") and any(hold.mode == "max" for hold in self._waits()):
            raise PruneError(f"monitor (={monitor!r}) is a loss: use Plateau(mode='min')")
        self.plan: Plan | None = None
        self.blended: Blended | None = None
        self.small: nn.Module | None = None
        self.collapse_error: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the branches, before the optimizer is built."""
        if stage != "fit" or any(m is self.blended for m in pl_module.modules()):
            return
        if self.schedule.done:
            self.schedule.reset()
        self.small = self.collapse_error = None
        self._graft = Graft(pl_module, self.target)
        network = self._graft.network
        example = self._example(trainer, pl_module)
        self.plan = plan(
            network,
            example,
            self.keep,
            exclude=self.exclude,
            multiple_of=self.multiple_of,
            inside=self.inside,
            opaque=self.opaque,
        )
        self.blended = attach(network, self.plan, self.init)
        self.blended.alpha = self.schedule.alpha
        self._graft.insert(self.blended)
        self.macs = 0

    def _example(self, trainer: Trainer, module: LightningModule) -> Example:
        if self.example is not None:
            return self.example
        if isinstance(module.example_input_array, Tensor | tuple | dict):
            return module.example_input_array
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            raise PruneError(
                "example (=None) is needed: neither example_input_array nor a data module is there"
            )
        batch = next(iter(data.train_dataloader()))
        images: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
        return images[:1]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the learning rate starts; put all α curves on one chart."""
        self._start = [
            (copy.deepcopy(group["lr"]), group)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
        ]
        self._schedulers = [
            (config.scheduler, copy.deepcopy(config.scheduler.state_dict()))
            for config in trainer.lr_scheduler_configs
        ]
        self._check_optimizers(trainer)
        if self._waits() and trainer.check_val_every_n_epoch != 1:
            every = trainer.check_val_every_n_epoch
            raise PruneError(f"check_val_every_n_epoch (={every}) must be 1: a Plateau waits")
        limit = trainer.max_epochs
        if limit not in (None, -1) and limit < self.schedule.max_epochs:
            rank_zero_warn(
                f"max_epochs (={limit}) may end training before the schedule does, which takes up "
                f"to {self.schedule.max_epochs}"
            )
        for logger in trainer.loggers:
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars"):
                writer.add_custom_scalars(CHARTS)

    def _waits(self) -> list[Plateau]:
        """Return the holds that watch a metric."""
        holds = (self.schedule.hold, self.schedule.final_hold)
        return [hold for hold in holds if isinstance(hold, Plateau)]

    def _check_optimizers(self, trainer: Trainer) -> None:
        """Raise for parameters that would not be trained: the optimizer names only some layers."""
        trained = {
            id(parameter)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, parameter in self._blended.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                raise PruneError(
                    f"no optimizer holds the parameter {name} of the blended model: build it "
                    "from self.parameters()"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to remember recent training inputs."""
        recent = self.recent

        # A plain function: a bound method would make deepcopy of the model copy the trainer too.
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(module, Blended) and module.training and torch.is_grad_enabled():
                named = signature(module.model.forward).bind(*args, **kwargs).arguments
                recent.append(dict(named) if kwargs else args)

        self._hook = self._blended.register_forward_pre_hook(remember, with_kwargs=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the recent inputs."""
        self._hook.remove()
        self.recent.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Forget the recent inputs of a training that broke off."""
        if hasattr(self, "_hook"):
            self.on_train_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log α."""
        super().on_train_epoch_start(trainer, pl_module)
        blended = self._blended
        before, blended.alpha = blended.alpha, self.schedule.alpha
        if blended.alpha != before or not self.macs:
            self.macs = self._count_macs()
        for name, alpha in blended.alpha.items():
            pl_module.log(f"alpha/{name}", alpha)
        pl_module.log("cost/macs", float(self.macs))

    @property
    def _blended(self) -> Blended:
        assert self.blended is not None, "setup has not run"
        return self.blended

    def _count_macs(self) -> int:
        blended = self._blended
        if not any(blended.alpha.values()):
            return blended.plan.after.macs
        return count_macs(blended, blended.plan.example, blended.part)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the branch alone."""
        if self.blended is None or trainer.sanity_checking or self.small is not None:
            return
        for name, value in validate_branch(trainer, pl_module, self.blended, self.recent).items():
            pl_module.log(f"{name}_branch", value, batch_size=1)

    def where(self) -> str:
        """Say what α is."""
        levels = sorted(set(self._blended.alpha.values()))
        return f", alpha = {levels[0] if len(levels) == 1 else levels}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the schedule the metric and let it move."""
        if self.monitor is not None:
            if self.monitor not in trainer.callback_metrics:
                known = ", ".join(sorted(trainer.callback_metrics))
                raise PruneError(f"monitor (={self.monitor!r}) is not logged; logged are: {known}")
            self.schedule.report(float(trainer.callback_metrics[self.monitor]))
        if self.schedule.advance() and self.learning_rate == "restart":
            self._restart_learning_rate()
        if self.schedule.done:
            trainer.should_stop = True

    def _restart_learning_rate(self) -> None:
        for scheduler, state in self._schedulers:
            scheduler.load_state_dict(copy.deepcopy(state))
        for learning_rate, group in self._start:
            group["lr"] = copy.deepcopy(learning_rate)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collapse."""
        if not self.collapses or self.small is not None:
            return
        if any(self._blended.alpha.values()):
            rank_zero_warn(f"training ended at {self._blended.alpha}: nothing is collapsed")
            return
        self.small, self.collapse_error = collapse_with_error(self._blended)
        self._graft.restore(self.small)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the schedule."""
        self.schedule.load_state_dict(state_dict)

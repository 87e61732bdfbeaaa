"""The callback that prunes while a Trainer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from branchprune.blending.attach import Init, attach
from branchprune.blending.blended import Blended
from branchprune.blending.fit_expand import fit_expand
from branchprune.blending.path_sampling import Mixing, Norms, PathMixing
from branchprune.blending.schedules import Schedule
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.graph.inputs import Example
from branchprune.lightning.best_weights import BestWeights
from branchprune.lightning.blended_macs import blended_macs
from branchprune.lightning.branch_validation import last_shares, validate_branch
from branchprune.lightning.callback_checks import check_epochs, check_options, check_order
from branchprune.lightning.collapsed_checkpoint import KEY, blending_state, load_collapsed
from branchprune.lightning.freezing import Freezing
from branchprune.lightning.loss_guard import LossGuard
from branchprune.lightning.lr_restart import LearningRates
from branchprune.lightning.network_swap import NetworkSwap
from branchprune.lightning.optimizer_check import check_optimizers
from branchprune.lightning.ranks import monitored
from branchprune.lightning.recent_inputs import RecentInputs
from branchprune.lightning.tensorboard_layout import TensorBoardCurves
from branchprune.lightning.trainer_check import check_trainer
from branchprune.lightning.training_inputs import find_example, first_inputs
from branchprune.planning.plan import Plan, plan
from branchprune.training.batch_keys import Keys, keys_of


class BranchPruning(LossGuard):
    """Attach branches before training, move α along a schedule, log it, collapse at the end.

    ```python
    pruning = BranchPruning(bp.Schedule(bp.steps(0.1), hold=2), keep=0.5, example=x)
    trainer = Trainer(max_epochs=pruning.schedule.max_epochs, callbacks=[pruning])
    trainer.fit(module, data)      # module.model is now the small network
    ```

    At every validation each metric `name` is logged a second time as `name_branch`: that of the
    branch alone, with α forced to 0. While 0 < α < 1, "share/<layer>" is how much of what layers
    read comes from the branch (see `branch_shares`), in the last training batch. The callback
    works with LightningModules of `pytorch_lightning` and of `lightning.pytorch`.

    Args:
        schedule: α over the epochs.
        keep: See `plan`.
        exclude, multiple_of, inside, opaque: See `plan`.
        init, mixing, norms: See `attach`.
        matching: See `attach`; what it adds is logged as "loss/matching".
        calibration: Training batches of the data module that `init` sees; see `attach`.
        fit: Training batches of the data module on which `fit_expand` fits the branch; 0: none.
        example: See `plan`; None: the module's `example_input_array`, or the first image of the
            data module's training data.
        target: Path of the network in the LightningModule, "" for its own `forward`; None: its
            only child with layers, else its own `forward`.
        monitor: Metric that a `Plateau` watches, such as "metric/val_acc_branch".
        learning_rate: At each new level "keep" the learning rate going, or "restart" it and its
            schedulers. The schedule's own `restarts` always do.
        restore_best: End each level with the weights of the epoch at which `monitor` was best;
            "max" or "min" says what is best.
        thaw_at: α at and below which the original layers learn: 1: from the start; None: never.
        frozen: Patterns of names of parameters of `blended` that never learn, as "*.norm.weight".
        recalibrate: Number of recent training batches from which BatchNorm takes its statistics
            when the branch alone is validated; 0: those of the blend, which make the branch look
            far worse than it is.
        compile: Use torch.compile.
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

    load_collapsed = staticmethod(load_collapsed)

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
        mixing: Mixing = "sum",
        matching: float = 0.0,
        norms: Norms = "batch",
        calibration: int = 0,
        fit: int = 0,
        example: Example | None = None,
        target: str | None = None,
        monitor: str | None = None,
        learning_rate: Literal["keep", "restart"] = "keep",
        restore_best: Literal["max", "min"] | None = None,
        thaw_at: float | None = 1.0,
        frozen: Sequence[str] = (),
        recalibrate: int = 16,
        compile: bool = False,
        collapse: bool = True,
    ) -> None:
        counts = {"recalibrate": recalibrate, "fit": fit, "calibration": calibration}
        check_options(schedule, monitor, restore_best, learning_rate, thaw_at, counts)
        PathMixing(mixing, matching, norms)  # finds what is wrong
        self.originals = Freezing(thaw_at, frozen)
        self.schedule, self.keep = schedule, keep
        self.planning: dict[str, Any] = {
            "exclude": exclude,
            "multiple_of": multiple_of,
            "inside": inside,
            "opaque": opaque,
        }
        self.training: dict[str, Any] = {"mixing": mixing, "matching": matching, "norms": norms}
        self.init, self.calibration, self.fit, self.target = init, calibration, fit, target
        self.example, self.monitor, self.learning_rate = example, monitor, learning_rate
        self.compiles, self.collapses = compile, collapse
        self.best = BestWeights(restore_best) if restore_best else None
        self.new_level = False
        self.curves = TensorBoardCurves()
        self.recalibrate, self.recent = recalibrate, RecentInputs(max(recalibrate, 1))
        self.plan: Plan | None = None
        self.blended: Blended | None = None
        self.small: nn.Module | None = None
        self.collapse_error: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the branches, before the optimizer is built."""
        if stage != "fit" or any(m is self.blended for m in pl_module.modules()):
            return
        check_trainer(trainer)
        if self.schedule.done:
            self.schedule.reset()
        self.small = self.collapse_error = None
        check_order(trainer, self, pl_module)
        self._swap = NetworkSwap(pl_module, self.target)
        network = self._swap.network
        example = find_example(trainer, pl_module) if self.example is None else self.example
        self.plan = plan(network, example, self.keep, **self.planning)
        self.blended = self._attach(trainer, network, self.plan, keys_of(pl_module))
        self._set_alpha(self.blended)
        if self.compiles:
            self.blended.compile()
        self.originals.begin(self.blended, trainer.world_size)
        self._swap.insert(self.blended)
        self.macs = 0

    def _set_alpha(self, blended: Blended) -> None:
        blended.alpha = self.schedule.alpha
        self.alpha = blended.alpha

    def _keep_alpha(self) -> None:
        """Give the blended model its α back, which another callback may have averaged."""
        if self._blended.alpha != self.alpha:
            self._blended.alpha = self.alpha

    def _attach(self, trainer: Trainer, network: nn.Module, planned: Plan, keys: Keys) -> Blended:
        seen = first_inputs(trainer, "calibration", self.calibration, keys)
        blended = attach(network, planned, self.init, batches=seen, **self.training)
        if not self.fit:
            return blended
        return fit_expand(blended, first_inputs(trainer, "fit", self.fit, keys))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the learning rate starts; check what the trainer is set to."""
        self._rates = LearningRates(trainer)
        check_optimizers(trainer, self._blended)
        check_epochs(trainer, self.schedule, restores=self.best is not None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to remember recent training inputs."""
        self.recent.watch(self._blended, trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log what feature matching has added to the loss."""
        blended = self._blended
        if blended.matching and any(0 < alpha < 1 for alpha in blended.alpha.values()):
            value = blended.matching_loss.clone()
            pl_module.log("loss/matching", value, on_step=False, on_epoch=True, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the recent inputs, close what was opened; what was to learn may learn again."""
        self.recent.stop()
        self.originals.end()
        self.curves.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Forget the recent inputs of a training that broke off."""
        if self.blended is not None:
            self.on_train_end(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log α, and what learns at it."""
        if self.new_level:
            self._rates.restart(self.schedule.learning_rate)
            self.new_level = False
        super().on_train_epoch_start(trainer, pl_module)
        self.recent.forget()
        blended = self._blended
        before = self.alpha
        self._set_alpha(blended)
        self.originals.move(blended.alpha.values())
        if blended.alpha != before or not self.macs:
            self.macs = blended_macs(trainer, blended)
        self.curves.begin_epoch(trainer, blended.alpha)
        for name, alpha in blended.alpha.items():
            pl_module.log(f"alpha/{name}", alpha)
        pl_module.log("cost/macs", float(self.macs))

    @property
    def _blended(self) -> Blended:
        assert self.blended is not None, "setup has not run"
        return self.blended

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the branch alone, and measure its shares."""
        if self.blended is None or trainer.sanity_checking or self.small is not None:
            return
        recent = self.recent.inputs if self.recalibrate else ()
        values = validate_branch(trainer, pl_module, self.blended, recent)
        self.curves.validated(trainer, values)
        shares = last_shares(trainer, self.blended, self.recent.inputs)
        named = {f"{name}_branch": value for name, value in values.items()}
        named |= {f"share/{name}": value for name, value in shares.items()}
        pl_module.log_dict(named, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """See to it that the α that is validated is that of the schedule."""
        if self.small is None and self.blended is not None:
            self._keep_alpha()

    def where(self) -> str:
        """Say what α is."""
        levels = sorted(set(self._blended.alpha.values()))
        return f", alpha = {levels[0] if len(levels) == 1 else levels}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the schedule the metric and let it move."""
        if self.monitor is not None:
            metric = monitored(trainer, self.monitor)
            self.schedule.report(metric)
            if self.best is not None:
                self.best.offer(metric, self._blended)
        if self.schedule.advance():
            self._end_level()
        trainer.should_stop = trainer.should_stop or self.schedule.done

    def _end_level(self) -> None:
        again = self.schedule.learning_rate is not None
        if self.best is not None:
            self.best.restore(self._blended)
            if not again:  # what was best at α = 0 stays so over its restarts
                self.best.forget()
        self.new_level = not self.schedule.done and (again or self.learning_rate == "restart")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collapse."""
        if self.small is not None:
            return
        self._keep_alpha()
        if not self.collapses:
            return
        if any(self._blended.alpha.values()):
            rank_zero_warn(f"training ended at {self._blended.alpha}: nothing is collapsed")
            return
        self.small, self.collapse_error = collapse_with_error(self._blended)
        self._swap.restore(self.small)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule, the best weights of the level, how it is blended."""
        best = self.best.state_dict() if self.best else None
        state = {"schedule": self.schedule.state_dict(), "new_level": self.new_level, "best": best}
        if self.plan is None:
            return state
        made = self.plan, self.keep, self.planning, self.training, self._swap.target
        return state | {KEY: blending_state(*made)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue inside a level."""
        self.schedule.load_state_dict(state_dict["schedule"])
        self.new_level = state_dict["new_level"]
        if self.best is not None:
            self.best.load_state_dict(state_dict["best"])

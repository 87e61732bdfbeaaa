"""The sections of a run's configuration: the metric, the dense training, the pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from branchprune.blending import schedules
from branchprune.blending.attach import INITS, Init
from branchprune.blending.path_sampling import Mixing
from branchprune.blending.schedules import Mode, Plateau, Schedule
from branchprune.errors import PruneError
from branchprune.experiments.run.torch_pruning import Pruner
from branchprune.training.import_path import function_at

LEVELS: dict[str, Callable[..., tuple[float, ...]]] = {
    "steps": schedules.steps,
    "multiplicative": schedules.multiplicative,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
}


@dataclass
class MetricConfig:
    """The metric that a run is judged by.

    Args:
        val: Name under which the task logs it at validation.
        test: Name under which the task logs it at the test.
        label: What reports call it.
        mode: Whether it is to be large or small.
        format: How reports show it: "percent" for a fraction, "number" for anything else.
    """

    val: str = "metric/val_acc"
    test: str = "metric/test_acc"
    label: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    format: Literal["percent", "number"] = "percent"


@dataclass
class DenseConfig:
    """Training of the dense model.

    Args:
        epochs: Number of epochs; 0 needs a checkpoint.
        checkpoint: Weights to start from: a .safetensors file, or a state_dict or Lightning
            checkpoint, which is read without running any code in it.
    """

    epochs: int = 10
    checkpoint: str | None = None


@dataclass
class SparsifyConfig:
    """Training of the wide model with a penalty, before channels are chosen.

    Args:
        epochs: Number of epochs.
        penalty: "bn_scale": the sum of |γ| of all norms (network slimming, Liu et al., 2017), or
            "group_norm": that of Torch-Pruning's GroupNormPruner (Fang et al., 2023).
        weight: Weight of the penalty.
    """

    epochs: int = 10
    penalty: Literal["bn_scale", "group_norm"] = "bn_scale"
    weight: float = 1e-4


@dataclass
class FinetuneConfig:
    """Training of the small model.

    Args:
        epochs: Number of epochs.
        fresh: Start from new random weights: a narrow model from scratch, the control of all.
    """

    epochs: int = 10
    fresh: bool = False


@dataclass
class RoundsConfig:
    """The classical pipeline: remove channels, fine-tune the small model, and again.

    Args:
        max_drop: The rounds end when the validation metric of the small model is worse than the
            dense model's by more than this; that round does not count. Null: after the last.
        count: The most rounds.
        gradual: Reach `keep` with the last round, in equal factors, instead of keeping that much
            in each.
    """

    max_drop: float | None = 0.04
    count: int = 30
    gradual: bool = False


@dataclass
class BudgetConfig:
    """What all of the pruning may cost; its last stage takes what the others leave.

    Args:
        epochs: Epochs, of whatever.
        train_macs: Multiply-adds of the training, forward and backward.
    """

    epochs: int | None = None
    train_macs: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.train_macs) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise PruneError(
                f"budget must have one positive number, epochs (={self.epochs}) or "
                f"train_macs (={self.train_macs})"
            )


@dataclass
class PruneConfig:
    """Pruning: what stays, how α moves, how long.

    Args:
        keep: Fraction of the channels to keep, or one a layer.
        exclude: Layers, or modules around them, whose channels stay.
        multiple_of: Round kept widths to a multiple of this.
        inside: Path of a module: only what is inside it is traced and pruned.
        opaque: Paths of modules that are not looked into.
        init: "random", the name of a criterion ("l1", …), or its import path.
        calibration: Training batches that `init` sees: "taylor" needs their gradients,
            "reconstruction" what layers read of them.
        fit: Training batches on which the branch is fitted to what it replaces, by least squares
            (see `fit_expand`), before it learns; 0: none.
        pruner: Torch-Pruning's "magnitude" or "group_norm" removes the channels instead, at the
            same widths; with `levels: null`.
        sparsify: Train the wide model with a penalty first; null: not.
        levels: α: a list of levels, or one of {steps: size}, {multiplicative: decay},
            {linear: levels}, {cosine: levels}; null: no blending, the branch is collapsed as it
            is, which is classical pruning.
        hold: Epochs at each level, or a plateau.
        final_hold: Epochs at α = 0, or a plateau; null: as `hold`.
        order: Groups or modules to prune one after another; null: all at once.
        monitor: Metric that a plateau watches; null: that of the branch alone.
        monitor_mode: Whether `monitor` is to be large or small; null: as the metric of the run,
            which does for that metric alone.
        restarts: Learning rates at which α = 0 is held once more each, restarted there.
        learning_rate: At each level, keep the learning rate going or restart it.
        restore_best: End each level with the weights of its best epoch, by `monitor`.
        thaw_at: α at and below which the original layers learn: 1: from the start; null: never.
        mixing: "sum", or sampled by "group", "step" or "sample"; see `attach`.
        matching: Weight of the feature matching; see `attach`.
        average: Decay of an exponential moving average of the weights over the steps, which is what
            is validated and kept, of the blended as of the small model; 0: none.
        finetune: Train the small model after the collapse; null: not.
        rounds: Prune in rounds, each from the small model of the one before; null: once.
        budget: What all of this may cost: decides `final_hold`, or the epochs of `finetune`.
        recalibrate: Recent training batches that BatchNorm takes its statistics from when the
            branch alone is validated.
        task: Arguments of the task that differ from those of the dense training.
    """

    keep: float | dict[str, float] = 0.5
    exclude: list[str] = field(default_factory=list)
    multiple_of: int = 1
    inside: str = ""
    opaque: list[str] = field(default_factory=list)
    init: str = "l1"
    calibration: int = 0
    fit: int = 0
    pruner: Pruner | None = None
    sparsify: SparsifyConfig | None = None
    levels: dict[str, float] | list[float] | None = field(default_factory=lambda: {"steps": 0.1})
    hold: int | Plateau = 1
    final_hold: int | Plateau | None = None
    order: list[str] | None = None
    monitor: str | None = None
    monitor_mode: Mode | None = None
    restarts: list[float] = field(default_factory=list)
    learning_rate: Literal["keep", "restart"] = "keep"
    restore_best: bool = False
    thaw_at: float | None = 1.0
    mixing: Mixing = "sum"
    matching: float = 0.0
    average: float = 0.0
    finetune: FinetuneConfig | None = None
    rounds: RoundsConfig | None = None
    budget: BudgetConfig | None = None
    recalibrate: int = 16
    task: dict[str, Any] = field(default_factory=dict)

    def plan_options(self) -> dict[str, Any]:
        """Return what `plan` takes."""
        names = ("keep", "exclude", "multiple_of", "inside", "opaque")
        return {name: getattr(self, name) for name in names}

    def direction(self, metric: MetricConfig) -> Mode:
        """Return whether what plateaus and `restore_best` watch is to be large or small.

        Args:
            metric: The metric of the run.

        Raises:
            PruneError: `monitor` is another metric, and nothing says so.
        """
        if self.monitor_mode is not None:
            return self.monitor_mode
        if self.monitor in (None, metric.val, f"{metric.val}_branch"):
            return metric.mode
        plateaus = [h for h in (self.hold, self.final_hold) if isinstance(h, Plateau)]
        if any(plateau.mode == "min" for plateau in plateaus):  # "max" may be no one's choice
            return "min"
        if plateaus or self.restore_best:
            raise PruneError(
                f"monitor_mode (=None) must be 'max' or 'min': monitor (={self.monitor!r}) is not "
                f"the metric of the run (={metric.val!r})"
            )
        return metric.mode

    def schedule(self, mode: Mode) -> Schedule:
        """Return the schedule that the fields describe.

        Args:
            mode: Whether what a plateau watches is to be large or small; see `direction`.
        """
        assert self.levels is not None
        hold, final = self.hold, self.final_hold
        hold = replace(hold, mode=mode) if isinstance(hold, Plateau) else hold
        final = replace(final, mode=mode) if isinstance(final, Plateau) else final
        return Schedule(_levels(self.levels), hold, final, self.order, self.restarts)

    def criterion(self) -> Init:
        """Return what `attach` takes as `init`."""
        if self.init in ("random", *INITS):
            return self.init
        if "." not in self.init:
            known = ", ".join(("random", *INITS))
            raise PruneError(f"init (={self.init!r}) must be one of {known}, or an import path")
        return function_at(self.init, "init")


def _levels(value: dict[str, float] | list[float]) -> tuple[float, ...]:
    if isinstance(value, list):
        return tuple(value)
    if len(value) != 1 or not value.keys() <= LEVELS.keys():
        raise PruneError(f"levels (={value}) must be a list or name one of {', '.join(LEVELS)}")
    [(name, argument)] = value.items()
    whole = name in ("linear", "cosine")
    if whole and argument != int(argument):
        raise PruneError(f"levels (={value}): {name} takes a whole number")
    return LEVELS[name](int(argument) if whole else argument)

"""What all ways from a wide to a small model have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from branchprune.blending.attach import Init, attach
from branchprune.collapsing.collapse import collapse
from branchprune.criteria.selection import Criterion
from branchprune.errors import PruneError
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.settings import MetricConfig, RunSettings
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass(frozen=True)
class Setup:
    """What an algorithm works with beside its own options.

    Attributes:
        settings: Those of the run.
        widths: How many channels stay.
        criterion: Which channels stay.
        example: Input of one example.
        made: The criterion itself, if it is one that is made of training data and has been.
    """

    settings: RunSettings
    widths: WidthsConfig
    criterion: CriterionConfig
    example: Tensor
    made: Criterion | None = None

    @property
    def init(self) -> Init:
        """What `attach` takes as `init`, or the name of a criterion that is yet to be made.

        Raises:
            PruneError: There is no such criterion.
        """
        return self.criterion.init() if self.made is None else self.made


@dataclass
class Pruned:
    """A model that has become small.

    Attributes:
        small: The small model.
        plan: From the model before to the small one.
        collapse_error: Relative error of the collapse in float64, the largest of all rounds.
        own_dtype_error: The same in the model's own dtype.
        scores: Validation scores on the way, by name.
        rounds: For each round its score, what is left, and whether it is kept, if there are rounds.
        loggers: Those of the blending.
    """

    small: nn.Module
    plan: Plan
    collapse_error: float
    own_dtype_error: float
    scores: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    loggers: list[Logger] = field(default_factory=list)


@runtime_checkable
class Algorithm(Protocol):
    """A way to shrink a model: a section of `prune`, with its options."""

    def check(self, setup: Setup, planned: Plan) -> None:
        """Find every mistake that can be found before training.

        Args:
            setup: What it works with.
            planned: From the dense to the small model.

        Raises:
            PruneError: An option is wrong.
        """

    def seen(self, setup: Setup, stages: Stages) -> Sequence[Tensor]:
        """Return the batches on which widths are chosen for a target.

        Args:
            setup: What it works with.
            stages: They know what batches are like.
        """

    def narrow(
        self,
        setup: Setup,
        stage: str,
        dense: nn.Module,
        wide: nn.Module,
        planned: Plan,
        stages: Stages,
    ) -> Pruned:
        """Make a wide model small.

        Args:
            setup: What it works with.
            stage: Name of the stage.
            dense: The trained model, a teacher.
            wide: The model to make small; it is not changed.
            planned: From the wide to the small model.
            stages: Where to train.
        """

    def epochs_to_train(
        self, metric: MetricConfig, dense: nn.Module, planned: Plan
    ) -> Sequence[Epoch]:
        """Return one `Epoch` per training epoch, to count its cost.

        It is empty for algorithms without training.

        Args:
            metric: The metric of the run.
            dense: The trained model.
            planned: From the dense to the small model.

        Raises:
            PruneError: How many epochs there are depends on a metric.
        """

    def with_last_stage(self, epochs: int) -> Self:
        """Return a copy whose last stage lasts `epochs` epochs.

        Raises:
            PruneError: It does not train.
        """


@dataclass
class Calibrated:
    """What algorithms have in common that choose by training batches."""

    def seen(self, setup: Setup, stages: Stages) -> Sequence[Tensor]:
        """Return `criterion.calibration` training batches; see `Algorithm`."""
        return training_inputs(setup.settings.data, setup.criterion.calibration, stages.keys)


@dataclass
class Untrained(Calibrated):
    """What algorithms have in common that train nothing."""

    def epochs_to_train(
        self, metric: MetricConfig, dense: nn.Module, planned: Plan
    ) -> Sequence[Epoch]:
        """Return none; see `Algorithm`."""
        return ()

    def with_last_stage(self, epochs: int) -> Self:
        """Refuse; see `Algorithm`."""
        raise PruneError("cost: nothing is trained: set finetune, or blend")


def at_widths(model: nn.Module, planned: Plan) -> nn.Module:
    """Return a model at the widths of a plan, to count what it costs or to load weights into it."""
    blended = attach(model, planned)
    blended.alpha = 0.0
    return collapse(blended)

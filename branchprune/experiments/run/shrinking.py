"""What all ways from a wide to a small model have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from branchprune.errors import PruneError
from branchprune.experiments.run.budget import Epoch
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.settings import MetricConfig, RunSettings
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.planning.plan import Plan


@dataclass
class Narrowed:
    """A model that has become small.

    Attributes:
        small: The small model, on the CPU.
        plan: From the wide to the small model.
        collapse_error: Relative error of the collapse in float64.
        own_dtype_error: The same in the model's own dtype.
        scores: Validation scores on the way, by name.
        loggers: Those of the training on the way.
    """

    small: nn.Module
    plan: Plan
    collapse_error: float
    own_dtype_error: float
    scores: dict[str, float] = field(default_factory=dict)
    loggers: list[Logger] = field(default_factory=list)


class Narrowing(Protocol):
    """A way from a wide to a small model."""

    def check(self, planned: Plan) -> None:
        """Find every mistake that can be found before training."""

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Make a wide model small.

        Args:
            stage: Name of the stage.
            dense: The trained model, a teacher.
            wide: The model to make small; it is not changed.
            planned: From the wide to the small model.
            stages: Where to train.
        """


class Algorithm(Protocol):
    """The configuration of a way to shrink: a section of `prune`."""

    def narrowing(
        self,
        settings: RunSettings,
        widths: WidthsConfig,
        criterion: CriterionConfig,
        example: Tensor,
    ) -> Narrowing:
        """Return what carries it out.

        Args:
            settings: Those of the run.
            widths: How many channels stay.
            criterion: Which channels stay.
            example: Input of one example.

        Raises:
            PruneError: An option is wrong.
        """

    def to_train(self, metric: MetricConfig, dense: nn.Module, planned: Plan) -> Sequence[Epoch]:
        """Return what each of its epochs trains; nothing unless it trains.

        Args:
            metric: The metric of the run.
            dense: The trained model.
            planned: From the dense to the small model.
        """

    def lasting(self, epochs: int) -> Self:
        """Return the same with a last stage of so many epochs.

        Raises:
            PruneError: It does not train.
        """


@dataclass
class Untrained:
    """What algorithms have in common that train nothing."""

    def to_train(self, metric: MetricConfig, dense: nn.Module, planned: Plan) -> Sequence[Epoch]:
        """Return nothing; see `Algorithm`."""
        return ()

    def lasting(self, epochs: int) -> Self:
        """Refuse; see `Algorithm`."""
        raise PruneError("cost: nothing is trained: set finetune, or blend")

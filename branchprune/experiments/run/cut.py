"""The removal of channels at once: an α that jumps to 0, and a collapse."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.collapsing.collapse_check import own_dtype_error
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.settings import RunSettings
from branchprune.experiments.run.shrinking import Narrowed, Untrained
from branchprune.experiments.run.stages import Stages
from branchprune.experiments.run.widths import WidthsConfig
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass
class CutConfig(Untrained):
    """Remove the channels at once, which is classical pruning."""

    def narrowing(
        self,
        settings: RunSettings,
        widths: WidthsConfig,
        criterion: CriterionConfig,
        example: Tensor,
    ) -> Cut:
        """Return what carries it out; see `Algorithm`."""
        return Cut(criterion)


class Cut:
    """Chooses channels and collapses.

    Args:
        criterion: How the channels are chosen.
    """

    def __init__(self, criterion: CriterionConfig) -> None:
        self.criterion, self.init = criterion, criterion.init()

    def check(self, planned: Plan) -> None:
        """Nothing is left to be found; see `Narrowing`."""

    def narrow(
        self, stage: str, dense: nn.Module, wide: nn.Module, planned: Plan, stages: Stages
    ) -> Narrowed:
        """Choose and collapse; see `Narrowing`."""
        data, criterion = stages.config.data, self.criterion
        batches = training_inputs(data, criterion.calibration, stages.keys)
        blended = attach(wide, planned, self.init, batches=batches)
        if criterion.fit:
            blended = fit_expand(blended, training_inputs(data, criterion.fit, stages.keys))
        blended.alpha = 0.0
        small, error = collapse_with_error(blended)
        return Narrowed(small, planned, error, own_dtype_error(blended, small))

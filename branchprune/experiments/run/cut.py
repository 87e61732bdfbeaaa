"""The removal of channels at once: an α that jumps to 0, and a collapse."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.collapsing.own_dtype import own_dtype_error
from branchprune.experiments.run.shrinking import Pruned, Setup, Untrained
from branchprune.experiments.run.stages import Stages
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass
class CutConfig(Untrained):
    """Remove the channels at once, which is classical pruning."""

    def check(self, setup: Setup, planned: Plan) -> None:
        """Look for the criterion; see `Algorithm`."""
        _ = setup.init  # finds what is wrong

    def narrow(
        self,
        setup: Setup,
        stage: str,
        dense: nn.Module,
        wide: nn.Module,
        planned: Plan,
        stages: Stages,
    ) -> Pruned:
        """Choose and collapse; see `Algorithm`."""
        data, criterion = setup.settings.data, setup.criterion
        batches = training_inputs(data, criterion.calibration, stages.keys)
        blended = attach(wide, planned, setup.init, batches=batches)
        if criterion.fit:
            blended = fit_expand(blended, training_inputs(data, criterion.fit, stages.keys))
        blended.alpha = 0.0
        small, error = collapse_with_error(blended)
        return Pruned(small, planned, error, own_dtype_error(blended, small))

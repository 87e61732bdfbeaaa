"""The removal of channels at once: an α that jumps to 0, and a collapse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from branchprune.blending.attach import attach
from branchprune.blending.fit_expand import fit_expand
from branchprune.collapsing.collapse import collapse_with_error
from branchprune.collapsing.own_dtype import own_dtype_error
from branchprune.criteria.named import criterion_of
from branchprune.criteria.selection import Remembered
from branchprune.errors import PruneError
from branchprune.experiments.run.callbacks.early_weights import EARLY, early_file
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.shrinking import Pruned, Setup, Untrained
from branchprune.experiments.run.stages import Stages
from branchprune.graph.inputs import copied
from branchprune.graph.shortcut import put_shortcuts, shortcuts
from branchprune.lightning.training_inputs import training_inputs
from branchprune.planning.plan import Plan


@dataclass
class CutConfig(Untrained):
    """Remove the channels at once, which is classical pruning.

    Args:
        rewind: "early": the dense training keeps the weights that it has after a tenth of it, in
            early.safetensors beside the dense model, channels are chosen in the trained model, and
            the small one starts from these (the lottery ticket hypothesis, Frankle, Carbin, 2019;
            weight rewinding, Renda et al., 2020). Or the path of such a file; null: from those of
            the trained model.
    """

    rewind: str | None = None

    def check(self, setup: Setup, planned: Plan) -> None:
        """Look for the criterion; see `Algorithm`."""
        _ = setup.init  # finds what is wrong
        if self.rewind is not None and setup.criterion.fit:
            raise PruneError(
                f"cut.rewind (={self.rewind}) starts from early weights, to which nothing is "
                f"fitted: set criterion.fit (={setup.criterion.fit}) to 0"
            )
        trained = setup.settings.dense.epochs and self.rewind == EARLY
        if self.rewind is not None and not trained and not self._rewound_to(setup).is_file():
            raise PruneError(
                f"cut.rewind (={self.rewind}): {self._rewound_to(setup)} does not exist; "
                "`branchprune dense` keeps early weights beside the dense model"
            )

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
        if self.rewind is None:
            blended = attach(wide, planned, setup.init, batches=batches)
        else:
            scores = Remembered(criterion_of(setup.init))
            attach(wide, planned, scores, batches=batches)
            early = copied(dense)
            load_weights(early, self._rewound_to(setup))
            put_shortcuts(early, shortcuts(wide))
            blended = attach(early, planned, scores.again)
        if criterion.fit:
            blended = fit_expand(blended, training_inputs(data, criterion.fit, stages.keys))
        blended.alpha = 0.0
        small, error = collapse_with_error(blended)
        return Pruned(small, planned, error, own_dtype_error(blended, small))

    def _rewound_to(self, setup: Setup) -> Path:
        assert self.rewind is not None, "asked of those who rewind"
        return early_file(setup.settings) if self.rewind == EARLY else Path(self.rewind)

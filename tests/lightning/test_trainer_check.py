"""Trainers with which pruning cannot work are refused before anything is trained."""

from types import SimpleNamespace

import pytest
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy

import branchprune as bp
from branchprune.lightning.trainer_check import check_trainer


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_shard_are_refused(kind):
    trainer = SimpleNamespace(precision="32-true", strategy=object.__new__(kind))
    with pytest.raises(bp.PruneError, match=f"strategy .a {kind.__name__}.*strategy='ddp'"):
        check_trainer(trainer)


def test_a_precision_that_replaces_layers_is_refused():
    trainer = SimpleNamespace(precision="transformer-engine-float16", strategy=None)
    with pytest.raises(bp.PruneError, match=r"transformer-engine-float16.*bf16-true"):
        check_trainer(trainer)

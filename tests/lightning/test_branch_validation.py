"""The branch alone is validated as the trainer validates, with metrics of its own."""

import pytest
import pytorch_lightning
import torch
from small_training import loader, make_module, network, trainer

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask


@pytest.mark.parametrize(
    "options",
    [
        {"limit_val_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
    ],
    ids=lambda options: str(*options.values()),
)
def test_the_branch_is_validated_as_the_trainer_validates(options):
    """At α = 0 it is all that there is."""
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=torch.randn(2, 1, 8, 8))
    run = trainer(2, pruning, **options)
    run.fit(ClassificationTask(network(), learning_rate=0.01), loader(), loader(n=22, seed=1))
    logged = run.callback_metrics
    assert logged["loss/val_branch"].item() == pytest.approx(logged["loss/val"].item(), rel=1e-6)


def test_a_metric_that_training_has_filled_is_empty_for_the_branch():
    module, val = make_module(pytorch_lightning), loader(n=20, seed=1)
    plain = module.training_step

    def training_step(batch, batch_idx):
        module.accuracy(module(batch[0]), (batch[1] + 1) % 4)
        return plain(batch, batch_idx)

    module.training_step = training_step
    pruning = BranchPruning(bp.Schedule((0.0,)), example=torch.randn(2, 1, 8, 8))
    run = trainer(1, pruning, num_sanity_val_steps=0)
    run.fit(module, loader(), val)
    hits = torch.cat([module.net.eval()(x).argmax(1) == y for x, y in val])
    found = run.callback_metrics["val_acc_branch"].item()
    assert found == pytest.approx(hits.float().mean().item())

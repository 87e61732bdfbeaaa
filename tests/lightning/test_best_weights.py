"""What of a level is kept in a checkpoint: its best weights, and that the next begins anew."""

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.lightning import BranchPruning
from branchprune.lightning.best_weights import BestWeights


def layer(value):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize(("mode", "metrics"), [("max", [3.0, 2.0, 4.0]), ("min", [2.0, 3.0, 1.0])])
def test_a_checkpoint_knows_how_good_the_best_was(mode, metrics):
    best, resumed, module = BestWeights(mode), BestWeights(mode), layer(0)
    best.offer(metrics[0], layer(10))
    resumed.load_state_dict(best.state_dict())
    for metric, offered, expected in ((metrics[1], 20, 10), (metrics[2], 30, 30)):
        resumed.offer(metric, layer(offered))
        resumed.restore(module)
        assert module.weight.item() == expected
    best.restore(module)
    assert module.weight.item() == 10


def test_a_checkpoint_between_levels_knows_that_the_next_one_begins():
    def callback():
        schedule = bp.Schedule((0.5, 0.0))
        return BranchPruning(schedule, learning_rate="restart", example=torch.ones(1, 1, 8, 8))

    pruning, resumed = callback(), callback()
    assert pruning.schedule.advance()
    pruning._end_level()
    resumed.load_state_dict(pruning.state_dict())
    assert resumed.new_level and resumed.schedule.alpha == 0

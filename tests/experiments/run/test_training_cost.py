"""What a training costs, against FlopCounterMode used by hand and a clock that is a number."""

import copy

import pytest
import torch
from pytorch_lightning import Callback
from small_training import loader, network, trainer
from torch.utils.flop_counter import FlopCounterMode

import branchprune as bp
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.lightning import BranchPruning, ClassificationTask

EXAMPLE = torch.randn(2, 1, 8, 8)


def macs_by_hand(blended, alpha):
    """Multiply-adds of an epoch, forward and backward."""
    blended = copy.deepcopy(blended).train()
    blended.alpha = alpha
    with FlopCounterMode(display=False) as counter:
        for x, y in loader():
            blended.zero_grad()
            torch.nn.functional.cross_entropy(blended(x), y).backward()
    return counter.get_total_flops() // 2


class Sums(Callback):
    def __init__(self, cost):
        self.cost, self.seen = cost, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(self.cost.macs)
        assert trainer.callback_metrics["cost/train_macs"].item() == self.cost.macs


def test_macs_of_blended_epochs_add_up():
    cost = TrainingCost()
    sums = Sums(cost)
    pruning = BranchPruning(bp.Schedule((0.5, 0.0), hold=2), example=EXAMPLE)
    trainer(9, pruning, cost, sums).fit(ClassificationTask(network()), loader(), loader())
    half, zero = (macs_by_hand(pruning.blended, alpha) for alpha in (0.5, 0))
    assert sums.seen == [half, 2 * half, 2 * half + zero, 2 * half + 2 * zero]
    assert zero < half


def test_frozen_layers_cost_less():
    costs = []
    for thaw_at in (1.0, None):
        cost = TrainingCost()
        pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE, thaw_at=thaw_at)
        trainer(2, pruning, cost).fit(ClassificationTask(network()), loader(), loader())
        costs.append(cost.macs)
    assert costs[1] < costs[0]


class Clock:
    """A clock that stands still except where it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("branchprune.experiments.run.callbacks.training_cost.time", clock)
    return clock


class Slow:
    """A loader, or anything that is iterated, that takes some seconds for each batch."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.batches = clock, seconds, list(loader())

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.clock.now += self.seconds
            yield batch


class Steps(ClassificationTask):
    """Takes two seconds for a step, ten for one of validation."""

    clock = None

    def training_step(self, batch, batch_idx):
        self.clock.now += 2
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock.now += 10
        return super().validation_step(batch, batch_idx)


class Shares(Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(trainer.callback_metrics["cost/loader_share"].item())


@pytest.mark.parametrize("often", [{}, {"val_check_interval": 1}], ids=["epoch", "step"])
@pytest.mark.parametrize("wait", [0, 0.5, 6])
def test_share_of_a_slow_loader_without_validation(wait, often, clock):
    task, cost, shares = Steps(network(), learning_rate=0.01), TrainingCost(), Shares()
    task.clock = clock
    trainer(2, cost, shares, **often).fit(task, Slow(clock, wait), Slow(clock, 50))
    assert cost.waited == pytest.approx(2 * 3 * wait)
    assert cost.seconds == pytest.approx(2 * 3 * (wait + 2))
    assert shares.seen == [pytest.approx(wait / (wait + 2))] * 2


def test_sums_continue_from_a_checkpoint(clock):
    task, cost = Steps(network(), learning_rate=0.01), TrainingCost()
    task.clock = clock
    trainer(1, cost).fit(task, Slow(clock, 1), Slow(clock, 50))
    other = TrainingCost()
    other.load_state_dict(cost.state_dict())
    clock.now += 1000
    trainer(1, other).fit(task, Slow(clock, 1), Slow(clock, 50))
    assert (other.macs, other.seconds, other.waited) == (2 * cost.macs, 18, 6)


def test_a_training_that_breaks_off_stops_counting():
    class Fails(ClassificationTask):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        trainer(1, TrainingCost()).fit(Fails(network()), loader(), loader())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None

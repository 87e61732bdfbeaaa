"""The learning rate of every epoch, against rates written out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from small_training import Scripted, loader, network, trainer

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.lightning.lr_restart import LearningRates

EXAMPLE = torch.randn(2, 1, 8, 8)


class Rates(Callback):
    """The learning rate that the first step of every epoch is made with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
        if batch_idx == 0:
            self.seen.append(*rates)
        assert rates == {self.seen[-1]}


def rates_of(task, learning_rate="keep", schedule=None):
    schedule = schedule or bp.Schedule((0.5, 0.0), hold=2, restarts=[0.01, 0.3])
    pruning = BranchPruning(schedule, example=EXAMPLE, learning_rate=learning_rate)
    rates = Rates()
    trainer(schedule.max_epochs, pruning, rates).fit(task, loader(), loader())
    return rates.seen


def half_cosine(rate, t, length):
    return rate / 2 * (1 + math.cos(math.pi * t / length))


@pytest.mark.parametrize("learning_rate", ["keep", "restart"])
def test_restarts_with_a_constant_learning_rate(learning_rate):
    task = ClassificationTask(network(), schedule="constant", learning_rate=0.1)
    expected = [0.1] * 4 + [0.01] * 2 + [0.3] * 2
    assert rates_of(task, learning_rate) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("learning_rate", "cycle", "places"),
    [
        ("keep", None, [0, 1, 2, 3, 0, 1, 0, 1]),
        ("restart", None, [0, 1, 0, 1, 0, 1, 0, 1]),
        ("keep", 4, [0, 1, 2, 3, 0, 1, 0, 1]),
        ("restart", 2, [0, 1, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_restarts_with_a_cosine(learning_rate, cycle, places):
    task = ClassificationTask(network(), learning_rate=0.1, cycle_epochs=cycle)
    starts = [0.1] * 4 + [0.01] * 2 + [0.3] * 2
    expected = [half_cosine(s, t, cycle or 8) for s, t in zip(starts, places, strict=True)]
    assert rates_of(task, learning_rate) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("learning_rate", "expected"),
    [
        ("keep", [0.02, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.1, 0.1, 0.1]),
        ("restart", [0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.1, 0.1, 0.1]),
    ],
)
def test_a_plateau_scheduler_reduces_and_is_restarted(learning_rate, expected):
    """Two epochs without a fall of the loss are one more than the patience."""
    losses = [1, 2, 2, 2, 2, 2, 2, 2, 2]
    task = Scripted(losses, "loss/val", schedule="plateau", learning_rate=0.02, patience=1)
    schedule = bp.Schedule((0.5, 0.0), hold=3, restarts=[0.1])
    assert rates_of(task, learning_rate, schedule) == pytest.approx(expected)


def test_a_plateau_scheduler_reduces_within_a_restart():
    task = Scripted([1] * 8, "loss/val", schedule="plateau", learning_rate=0.1, patience=0)
    schedule = bp.Schedule((0.0,), hold=2, final_hold=4, restarts=[0.5])
    expected = [0.1, 0.1, 0.01, 0.001, 0.5, 0.5, 0.05, 0.005]
    assert rates_of(task, "keep", schedule) == pytest.approx(expected)


class EveryRate(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def one_cycle(top, steps):
    """A 25th of the top, the top behind a fifth of the steps, nearly nothing at the end."""
    model = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=top)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        model, top, steps, pct_start=0.2, cycle_momentum=False
    )
    rates = []
    for _ in range(steps):
        rates.append(model.param_groups[0]["lr"])
        model.step()
        cycle.step()
    assert 0.9 * top < max(rates) <= top and rates[0] == pytest.approx(top / 25)
    return rates


def test_one_cycle_moves_with_every_step():
    rates, batches = EveryRate(), len(loader())
    task = ClassificationTask(network(), schedule="one_cycle", learning_rate=0.2)
    trainer(5, rates).fit(task, loader(), loader())
    assert rates.seen == pytest.approx(one_cycle(0.2, 5 * batches))


def test_restarts_with_one_cycle():
    rates, batches = EveryRate(), len(loader())
    task = ClassificationTask(network(), schedule="one_cycle", learning_rate=0.2)
    pruning = BranchPruning(
        bp.Schedule((0.0,), hold=2, final_hold=2, restarts=[0.5]), example=EXAMPLE
    )
    trainer(4, pruning, rates).fit(task, loader(), loader())
    steps = 4 * batches
    expected = one_cycle(0.2, steps)[: 2 * batches] + one_cycle(0.5, steps)[: 2 * batches]
    assert rates.seen == pytest.approx(expected)


def test_a_cosine_alone_has_a_length():
    with pytest.raises(bp.PruneError, match=r"cycle_epochs \(=3\) is of the schedule 'cosine'"):
        ClassificationTask(network(), schedule="one_cycle", cycle_epochs=3)


def test_restarts_scale_every_parameter_group():
    class Two(ClassificationTask):
        def configure_optimizers(self):
            first, *rest = self.parameters()
            return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.02}], lr=0.1)

    seen = []

    class Spy(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    pruning = BranchPruning(bp.Schedule((0.0,), restarts=[0.5]), example=EXAMPLE)
    trainer(2, pruning, Spy()).fit(Two(network()), loader(), loader())
    assert seen == [pytest.approx([0.1, 0.02]), pytest.approx([0.5, 0.1])]


def test_restarts_with_a_scheduler_that_counts_from_its_base():
    class Own(ClassificationTask):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [
                torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
            ]

    expected = [0.1, 0.05, 0.1 / 3, 0.025, 0.01, 0.005, 0.3, 0.15]
    assert rates_of(Own(network())) == pytest.approx(expected)
    expected = [0.1, 0.05, 0.1, 0.05, 0.01, 0.005, 0.3, 0.15]
    assert rates_of(Own(network()), "restart") == pytest.approx(expected)


def test_rates_in_tensors_start_anew():
    """Schedulers work in place on them."""
    rate, weight = torch.tensor(0.1), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = SimpleNamespace(
        optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)]
    )
    rates, found = LearningRates(trainer), []
    for restart in (None, 0.3, None):
        for _ in range(2):
            optimizer.step()
            scheduler.step()
        found.append(float(optimizer.param_groups[0]["lr"]))
        rates.restart(restart)
        found.append(float(optimizer.param_groups[0]["lr"]))
    assert found == pytest.approx([0.025, 0.1, 0.025, 0.3, 0.075, 0.1])


def warming(make):
    class Warming(ClassificationTask):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [make(optimizer, torch.optim.lr_scheduler)]

    return Warming(network())


def linear(optimizer, schedulers):
    return schedulers.LinearLR(optimizer, 0.01, total_iters=2)


def from_zero(optimizer, schedulers):
    return schedulers.LambdaLR(optimizer, lambda t: min(t, 2) / 2)


def in_sequence(optimizer, schedulers):
    parts = [linear(optimizer, schedulers), schedulers.CosineAnnealingLR(optimizer, 4)]
    return schedulers.SequentialLR(optimizer, parts, [2])


@pytest.mark.parametrize(
    ("make", "course"),
    [
        (linear, [0.01, 0.505, 1, 1]),
        (from_zero, [0, 0.5, 1, 1]),
        (in_sequence, [0.01, 0.505, 1, half_cosine(1, 1, 4)]),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_restarts_of_a_warm_up(make, course):
    """A restart says where the warm-up leads, not where it begins."""
    schedule = bp.Schedule((0.5, 0.0), hold=4, restarts=[0.05])
    expected = [0.1 * part for part in [*course, *course]] + [0.05 * part for part in course]
    assert rates_of(warming(make), "restart", schedule) == pytest.approx(expected)

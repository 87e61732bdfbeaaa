"""What a training remembers of its inputs, and what pruning takes from its data."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from small_training import Tiny, loader, network, trainer
from torch import nn

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask, Keys
from branchprune.lightning.recent_inputs import RecentInputs
from branchprune.lightning.training_inputs import find_example, first_inputs


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x, scale):
        return self.last(torch.relu(self.first(x)) * scale)


def batches(n):
    return [(torch.full((2, 1, 6, 6), float(i)), torch.tensor(i + 1.0)) for i in range(n)]


@pytest.fixture
def blended():
    model = Scaled()
    return bp.attach(model, bp.plan(model, batches(1)[0])).train()


def test_the_last_inputs_of_training_are_remembered_and_no_others(blended):
    recent, (a, b, c) = RecentInputs(2), batches(3)
    recent.watch(blended)
    blended(*a)
    blended(b[0], scale=b[1])
    assert len(recent) == 2
    with torch.no_grad():
        blended(*a)  # as where statistics are estimated
    blended.eval()(*a)
    first, second = recent
    assert all(map(torch.equal, first, a))
    assert [*second] == ["x", "scale"] and all(map(torch.equal, second.values(), b))
    blended.train()(scale=c[1], x=c[0])
    assert [type(example) for example in recent] == [dict, dict]
    recent.stop()
    blended(*a)
    assert not len(recent) and not blended._forward_pre_hooks


def test_the_branch_is_judged_by_inputs_with_names(blended):
    recent, [a] = RecentInputs(1), batches(1)
    recent.watch(blended)
    blended(x=a[0], scale=a[1])
    with blended.branch_only(recent):
        found = blended(*a)
    blended.alpha = 0
    assert torch.equal(found, blended(*a))


def test_an_example_is_the_modules_own_or_the_first_training_image():
    fake, task = SimpleNamespace(datamodule=Tiny()), ClassificationTask(network())
    images = [x for x, _ in loader()]
    assert torch.equal(find_example(fake, task), images[0][:1])
    task.keys = Keys(input=1)
    assert find_example(fake, task).dtype == torch.long
    task.example_input_array = images[1]
    assert find_example(fake, task) is images[1]
    found = first_inputs(fake, "fit", 2, Keys())
    assert len(found) == 2 and all(map(torch.equal, found, images))
    assert first_inputs(SimpleNamespace(), "fit", 0, Keys()) == []
    with pytest.raises(bp.PruneError, match=r"fit \(=2\) needs a data module"):
        first_inputs(SimpleNamespace(datamodule=None), "fit", 2, Keys())


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [1, 2]), ({"val_check_interval": 2}, [0, 1, 2]), ({"limit_train_batches": 2}, [0, 1])],
)
def test_batches_wait_for_validation_only_if_they_are_the_last(options, expected):
    pruning, seen = BranchPruning(bp.Schedule((0.5, 0.0)), recalibrate=2), []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            waits = [example[0] for example in pruning.recent]
            seen.append(any(torch.equal(example, batch[0]) for example in waits))

    fit = trainer(2, pruning, Look(), num_sanity_val_steps=0, **options)
    fit.fit(ClassificationTask(network()), Tiny())
    batches_an_epoch = len(seen) // 2
    assert seen == [i in expected for i in range(batches_an_epoch)] * 2


class Streamed(torch.utils.data.IterableDataset):
    """Batches whose number nobody knows."""

    def __iter__(self):
        return iter(loader())


def test_batches_of_an_unknown_number_all_wait():
    pruning, waits = BranchPruning(bp.Schedule((0.0,)), recalibrate=2), []
    pruning.example = torch.randn(2, 1, 8, 8)

    class Look(Callback):
        def on_train_batch_end(self, *_):
            waits.append(len(pruning.recent))

    data = torch.utils.data.DataLoader(Streamed(), batch_size=None)
    fit = trainer(1, pruning, Look(), num_sanity_val_steps=0)
    fit.fit(ClassificationTask(network()), data, loader())
    assert waits == [1, 2, 2]

"""Modules whose own forward is pruned: what they hold themselves is trained and put back once."""

import copy

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torchmetrics
from small_training import make_module as make_user_module
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.lightning import BranchPruning

FLAVOURS = [pytorch_lightning, lightning.pytorch]


def make_module(flavour, inside=False):
    """A LightningModule with layers, parameters and buffers of its own."""

    class Own(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.shift = nn.Parameter(torch.randn(4))
            self.register_buffer("strength", torch.rand(8, 1, 1) + 0.5)
            self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
            self.weight_of_loss = nn.Parameter(torch.ones(()))
            self.body = nn.Sequential(
                *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
                nn.Conv2d(6, 8, 1),
            )
            self.conv = nn.Conv2d(8, 6, 3)
            self.head = nn.Linear(6 * 36, 4)
            self.register_buffer("batches", torch.zeros(()))
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x):
            x = self.body(x)
            x = x * self.scale * self.strength if not inside else x + self.strength.mean()
            return self.head(torch.relu(self.conv(x)).flatten(1)) + self.shift

        def training_step(self, batch, batch_idx):
            self.batches += 1
            loss = self.criterion(self(batch[0]), batch[1])
            return loss * self.weight_of_loss.exp() - self.weight_of_loss

        def validation_step(self, batch, batch_idx):
            self.accuracy(self(batch[0]), batch[1])
            self.log("accuracy", self.accuracy)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Own()


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(24) % 4), batch_size=8)


def fit(flavour, module, pruning, *callbacks):
    trainer = flavour.Trainer(
        max_epochs=2,
        callbacks=[pruning, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), loader())
    trainer.validate(module, loader(), verbose=False)


class Spy(pytorch_lightning.Callback):
    """Looks at the parameters and buffers while the branches are there."""

    def on_train_start(self, trainer, pl_module):
        [group] = trainer.optimizers[0].param_groups
        self.optimized = [id(p) for p in group["params"]]
        self.model = pl_module.blended.model
        names = ("shift", "scale", "weight_of_loss", "strength", "batches")
        self.shared = all(getattr(pl_module, n) is getattr(self.model, n) for n in names)
        self.trained = {id(p) for p in pl_module.blended.parameters()}


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("inside", [False, True], ids=["all", "inside"])
def test_parameters_of_the_module_itself_are_trained_and_put_back(flavour, inside):
    module = make_module(flavour, inside)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    options = {"inside": "body"} if inside else {}
    example = torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(
        bp.Schedule((0.5, 0.0)), keep=0.5, example=example, target="", **options
    )
    spy = Spy()
    fit(flavour, module, pruning, spy)
    assert spy.shared
    assert len(set(spy.optimized)) == len(spy.optimized) and set(spy.optimized) == spy.trained
    assert list(module.state_dict()) == list(before)
    module.eval()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(module(x), pruning.small.eval()(x))
    if not inside:
        assert module.scale.shape == (1, 4, 1, 1)
        assert module.strength.shape == (4, 1, 1)
    assert module.batches == 6
    assert (module.shift - before["shift"]).abs().min() > 1e-4
    assert (module.weight_of_loss - before["weight_of_loss"]).abs() > 1e-4


def test_what_is_moved_stays_one():
    """A cast makes new buffers, as does a move to another device."""
    from branchprune.lightning.network_swap import NetworkSwap

    module, x = make_module(pytorch_lightning), torch.randn(2, 1, 8, 8)
    graft = NetworkSwap(module, "")
    blended = bp.attach(graft.network, bp.plan(graft.network, x))
    graft.insert(blended)
    module.double()
    for name in ("strength", "batches", "scale"):
        assert getattr(module, name) is getattr(blended.model, name)
        assert getattr(module, name).dtype == torch.float64
    blended.alpha = 0
    small = bp.collapse(blended)
    graft.restore(small)
    y = torch.randn(2, 1, 8, 8).double()
    assert torch.equal(module.eval()(y), small.eval()(y))


def test_a_module_can_be_pruned_twice():
    module, example = make_module(pytorch_lightning), torch.randn(2, 1, 8, 8)
    for width in (4, 2):
        pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=example, target="")
        fit(pytorch_lightning, module.train(), pruning)
        assert module.scale.shape == (1, width, 1, 1)
        module.eval()
        assert torch.equal(module(example), pruning.small.eval()(example))


@pytest.mark.parametrize("inner", [True, False])
def test_a_checkpoint_of_the_blended_network_is_told_from_one_of_the_small_one(inner):
    from branchprune.lightning.network_swap import NetworkSwap

    module = make_user_module(pytorch_lightning, inner).eval()
    swap = NetworkSwap(module)
    blended = bp.attach(swap.network, bp.plan(swap.network, torch.randn(2, 1, 8, 8)))
    swap.insert(blended)
    before = copy.deepcopy(module.state_dict())
    blended.alpha = 0
    swap.restore(bp.collapse(blended))
    with pytest.raises(bp.PruneError, match=r"blended network in `\w+` \(alpha 1\)"):
        module.load_state_dict(before)
    module.load_state_dict(module.state_dict())
    swap.insert(blended)
    module.load_state_dict(before)
    assert set(blended.alpha.values()) == {1.0}

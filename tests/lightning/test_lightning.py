"""The callback in real Trainers, with modules that users write."""

from types import SimpleNamespace

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torchmetrics
from small_training import loader, make_module, network, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask, LossGuard, ReconstructionTask
from branchprune.lightning.optimizer_check import check_optimizers

FLAVOURS = [pytorch_lightning, lightning.pytorch]


def accuracy(model, batches):
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float() for x, y in batches]
    return torch.cat(hits).mean().item()


@pytest.mark.parametrize("inner", [True, False], ids=["network", "own layers"])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.__name__)
def test_users_module_is_pruned_as_it_stands(flavour, inner):
    module = make_module(flavour, inner)
    keys = list(module.state_dict())
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), keep=0.5, example=torch.randn(2, 1, 8, 8))
    val = loader(seed=1)
    run = trainer(2, pruning, flavour=flavour)
    run.fit(module, loader(), val)
    assert list(module.state_dict()) == keys
    first = module.net.features[0] if inner else module.conv
    assert first.out_channels == 4
    assert pruning.collapse_error < 1e-10
    assert "forward" not in vars(module)
    small = module.net if inner else module
    assert accuracy(small, val) == pytest.approx(run.callback_metrics["val_acc"].item())
    module.eval()(torch.randn(2, 1, 8, 8))


class Watch(pytorch_lightning.Callback):
    """Recomputes both metrics by hand at the end of every validation."""

    def __init__(self, pruning, batches):
        self.pruning, self.batches, self.rows = pruning, batches, []

    def on_validation_end(self, trainer, pl_module):
        blended = self.pruning.blended
        whole = accuracy(blended, self.batches)
        before = blended.alpha
        blended.alpha = 0
        branch = accuracy(blended, self.batches)
        blended.alpha = before
        logged = trainer.callback_metrics
        self.rows.append((whole, logged["val_acc"].item(), branch, logged["val_acc_branch"].item()))


def test_both_metrics_are_what_they_say():
    module = make_module(pytorch_lightning)
    schedule = bp.Schedule((0.7, 0.3, 0.0))
    example = torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(schedule, example=example, init="random", recalibrate=0)
    val = loader(n=20, seed=1)
    watch = Watch(pruning, val)
    trainer(3, pruning, watch, num_sanity_val_steps=0).fit(module, loader(), val)
    assert len(watch.rows) == 3
    for whole, logged, branch, logged_branch in watch.rows:
        assert logged == pytest.approx(whole)
        assert logged_branch == pytest.approx(branch)


def test_several_validation_loaders_are_told_apart():
    class Several(ClassificationTask):
        def __init__(self):
            super().__init__(network())
            self.hits = torchmetrics.Accuracy("multiclass", num_classes=4)

        def validation_step(self, batch, batch_idx, dataloader_idx):
            logits = self(batch[0])
            loss = nn.functional.cross_entropy(logits, batch[1])
            self.hits(logits, batch[1])
            self.log("loss", loss)
            self.log("hits", self.hits)
            self.log("joint", loss, add_dataloader_idx=False) if dataloader_idx else None

        def on_validation_epoch_end(self):
            self.log("end", 3.0)

    class Compare(pytorch_lightning.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    rows, loaders = [], [loader(n=20, seed=1), loader(n=12, seed=2)]
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=torch.randn(2, 1, 8, 8))
    trainer(2, pruning, Compare()).fit(Several(), loader(), loaders)
    names = [f"{name}/dataloader_{{}}{i}" for name in ("loss", "hits") for i in (0, 1)]
    logged = {name.format("") + "_branch": name.format("idx_") for name in names}
    logged |= {"joint_branch": "joint", "end_branch": "end"}
    assert {name for name in rows[0] if name.endswith("_branch")} == set(logged)
    assert rows[0]["loss/dataloader_0_branch"] != rows[0]["loss/dataloader_1_branch"]
    for branch, whole in logged.items():  # at α = 0 there is nothing else
        assert rows[1][branch] == pytest.approx(rows[1][whole]), branch


def test_branch_is_judged_with_batchnorm_statistics_of_its_own():
    """Recalculated here with torch's own update_bn on a copy, from the epoch's batches."""
    import copy

    from torch.optim.swa_utils import update_bn

    module = make_module(pytorch_lightning)
    example = torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(bp.Schedule((0.5, 0.2, 0.0)), example=example, recalibrate=2)
    train, val = loader(), loader(n=20, seed=1)
    rows = []

    class Compare(pytorch_lightning.Callback):
        def on_validation_end(self, trainer, pl_module):
            blended = copy.deepcopy(pruning.blended)
            blended._forward_pre_hooks.clear()
            if blended.alpha != dict.fromkeys(blended.alpha, 0.0):
                blended.alpha = 0
                update_bn([x for x, _ in train][-2:], blended)
            logged = trainer.callback_metrics["val_acc_branch"].item()
            rows.append((logged, accuracy(blended, val)))

    run = trainer(3, pruning, Compare(), num_sanity_val_steps=0)
    run.fit(module, train, val)
    assert len(rows) == 3
    assert all(logged == pytest.approx(expected) for logged, expected in rows)


def test_validating_the_branch_leaves_no_trace():
    def fit(callbacks):
        torch.manual_seed(0)
        task = ClassificationTask(network(), learning_rate=0.05)
        run = trainer(2, *callbacks, num_sanity_val_steps=0)
        run.fit(task, loader(), loader(seed=1))
        return task.model.state_dict()

    class NoBranchMetric(BranchPruning):
        def on_validation_epoch_start(self, trainer, pl_module):
            pass

    example = torch.randn(2, 1, 8, 8)
    states = [
        fit([kind(bp.Schedule((0.5, 0.0)), example=example)])
        for kind in (BranchPruning, NoBranchMetric)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_optimizer_holds_the_blended_parameters():
    seen = {}

    class Spy(pytorch_lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            groups = trainer.optimizers[0].param_groups
            seen["optimized"] = {id(p) for group in groups for p in group["params"]}
            seen["blended"] = {id(p) for p in pl_module.model.parameters()}

    pruning = BranchPruning(bp.Schedule((0.0,)), example=torch.randn(2, 1, 8, 8))
    trainer(1, pruning, Spy()).fit(ClassificationTask(network()), loader(), loader())
    assert seen["optimized"] == seen["blended"]


def test_tensorboard_has_every_curve_and_one_chart_of_all_alphas(tmp_path):
    logger = pytorch_lightning.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    table = pytorch_lightning.loggers.CSVLogger(tmp_path, name="", version="run")
    schedule, example = bp.Schedule((0.5, 0.0)), torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(schedule, example=example, recalibrate=0)
    run = trainer(2, pruning, logger=[logger, table])
    run.fit(ClassificationTask(network()), loader(), loader(seed=1))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = set(events.Tags()["scalars"])
    groups = [f"alpha/{g.name}" for g in pruning.plan.groups if g.pruned]
    expected = {*groups, "loss/train", "loss/val", "metric/val_acc", "metric/val_acc_branch"}
    assert expected | {"lr", "cost/macs"} <= tags
    assert [e.value for e in events.Scalars(groups[0])] == [0.5, 0.5, 0.0, 0.0]  # stairs
    shares = [tag for tag in tags if tag.startswith("share/")]
    assert len(shares) == len(groups)
    assert all([0 < e.value < 1 for e in events.Scalars(tag)] == [True] for tag in shares)
    assert events.Scalars("cost/macs")[-1].value == pruning.plan.after.macs
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert expected <= set(header)


def test_plateau_is_driven_by_the_monitored_metric():
    hold = bp.Plateau(max_epochs=4, patience=1)
    schedule = bp.Schedule((0.5, 0.0), hold=hold, final_hold=1)
    pruning = BranchPruning(
        schedule, example=torch.randn(2, 1, 8, 8), monitor="metric/val_acc_branch"
    )
    values = iter([0.1, 0.2, 0.2, 0.9])
    alphas = []

    class Fake(pytorch_lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            alphas.append(sorted(set(pruning.blended.alpha.values())))
            trainer.callback_metrics["metric/val_acc_branch"].fill_(next(values))

    trainer(9, Fake(), pruning).fit(ClassificationTask(network()), loader(), loader())
    assert alphas == [[0.5], [0.5], [0.5], [0.0]]


def test_monitor_that_is_not_logged_is_named():
    schedule = bp.Schedule((0.0,), hold=bp.Plateau(max_epochs=2))
    pruning = BranchPruning(schedule, example=torch.randn(2, 1, 8, 8), monitor="accuracy")
    with pytest.raises(bp.PruneError, match=r"monitor \(='accuracy'\).*metric/val_acc_branch"):
        trainer(2, pruning).fit(ClassificationTask(network()), loader(), loader())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("keep", [0.1, 0.075, 0.025, 0.0]), ("restart", [0.1, 0.075, 0.1, 0.075])],
)
def test_learning_rate_is_kept_or_restarted_at_each_alpha(policy, expected):
    rates = []

    class Spy(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 0:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    task = ClassificationTask(network(), learning_rate=0.1, cycle_epochs=3)
    pruning = BranchPruning(
        bp.Schedule((0.5, 0.0), hold=2), example=torch.randn(2, 1, 8, 8), learning_rate=policy
    )
    trainer(4, pruning, Spy()).fit(task, loader(), loader())
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("pruning", "lost"), [(True, "nan"), (False, "nan"), (False, "-inf")])
def test_nan_stops_before_the_weights_change(pruning, lost):
    class Breaks(ClassificationTask):
        def step(self, batch, stage):
            loss = super().step(batch, stage)
            return loss * float(lost) if self.global_step == 4 and stage == "train" else loss

    task = Breaks(network(), learning_rate=0.01)
    example = torch.randn(2, 1, 8, 8)
    callback = BranchPruning(bp.Schedule((0.5, 0.2, 0.0)), example=example)
    expected = rf"the loss is {lost} at step 4 \(epoch 1\)" + (", alpha = 0.2" if pruning else "")
    with pytest.raises(bp.PruneError, match=expected):
        trainer(3, callback if pruning else LossGuard()).fit(task, loader(), loader())
    assert all(p.isfinite().all() for p in task.parameters())
    if pruning:
        assert not callback.blended._forward_pre_hooks
        assert not callback.recent


def test_training_continues_from_a_checkpoint_inside_the_schedule(tmp_path):
    def fit(epochs, ckpt=None):
        pytorch_lightning.seed_everything(0, verbose=False)
        pruning = BranchPruning(bp.Schedule((0.6, 0.3, 0.0)), example=torch.ones(2, 1, 8, 8))
        task = ClassificationTask(network(), learning_rate=0.05, schedule="constant")
        run = trainer(epochs, pruning, enable_checkpointing=True, default_root_dir=tmp_path)
        run.fit(task, loader(), loader(), ckpt_path=ckpt)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt") if epochs == 1 else None
        return pruning

    whole = fit(3)
    with pytest.warns(UserWarning) as warned:
        fit(1)
    messages = [str(w.message) for w in warned]
    assert any("max_epochs (=1)" in m for m in messages)
    assert any("nothing is collapsed" in m for m in messages)
    resumed = fit(3, ckpt=tmp_path / "1.ckpt")
    states = (whole.small.state_dict(), resumed.small.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_reconstruction_task_prunes_an_autoencoder_part_by_part():
    from branchprune.models import Autoencoder

    torch.manual_seed(0)
    model = Autoencoder([[8, 8]], [[8, 8]], channels=1)
    images = torch.rand(16, 1, 8, 8)
    batches = DataLoader(TensorDataset(images, images), batch_size=8)
    task = ReconstructionTask(model, window=5)
    schedule = bp.Schedule((0.5, 0.0), order=["encoder", "decoder"])
    pruning = BranchPruning(schedule, example=images[:1])
    trainer(4, pruning).fit(task, batches, batches)
    assert [m.out_channels for m in task.model.encoder if isinstance(m, nn.Conv2d)] == [4, 4]
    assert task.model(images).shape == images.shape


def test_schedule_and_callback_can_be_used_again():
    schedule, example = bp.Schedule((0.5, 0.0)), torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(schedule, example=example)
    for callback in (pruning, pruning, BranchPruning(schedule, example=example)):
        task, run = ClassificationTask(network()), trainer(2, callback)
        run.fit(task, loader(), loader())
        assert run.current_epoch == 2
        assert task.model.features[0].out_channels == 4


def test_optimizers_may_share_what_learns():
    model = network()
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 1, 8, 8)))
    first, second, *others = blended.parameters()
    first.requires_grad_(False)
    two = [torch.optim.SGD([second], 0.1), torch.optim.SGD([{"params": [p]} for p in others], 0.1)]
    check_optimizers(SimpleNamespace(optimizers=two), blended)
    first.requires_grad_(True)
    with pytest.raises(bp.PruneError, match="no optimizer holds the parameter"):
        check_optimizers(SimpleNamespace(optimizers=two), blended)


def test_another_callback_may_end_the_training():
    class Stop(pytorch_lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=torch.randn(2, 1, 8, 8))
    run = trainer(2, Stop(), pruning)
    with pytest.warns(UserWarning, match="nothing is collapsed"):
        run.fit(ClassificationTask(network()), loader(), loader())
    assert run.current_epoch == 1 and pruning.small is None


def test_optimizer_that_misses_parameters_is_refused():
    class Head(ClassificationTask):
        def configure_optimizers(self):
            return torch.optim.SGD(self.model.model.classifier.parameters(), 0.1)

    pruning = BranchPruning(bp.Schedule((0.0,)), example=torch.randn(2, 1, 8, 8))
    with pytest.raises(bp.PruneError, match=r"parameter model.features.0.weight"):
        trainer(1, pruning).fit(Head(network()), loader(), loader())


def test_layer_asked_of_the_blended_model_says_where_it_is():
    class Named(ClassificationTask):
        def configure_optimizers(self):
            return torch.optim.SGD(self.model.classifier.parameters(), 0.1)

    pruning = BranchPruning(bp.Schedule((0.0,)), example=torch.randn(2, 1, 8, 8))
    with pytest.raises(AttributeError, match=r"'classifier' is in `blended.model`"):
        trainer(1, pruning).fit(Named(network()), loader(), loader())


def test_plateau_needs_a_validation_an_epoch():
    schedule = bp.Schedule((0.0,), hold=bp.Plateau())
    example = torch.randn(2, 1, 8, 8)
    pruning = BranchPruning(schedule, example=example, monitor="metric/val_acc")
    with pytest.raises(bp.PruneError, match="check_val_every_n_epoch"):
        trainer(9, pruning, check_val_every_n_epoch=2).fit(
            ClassificationTask(network()), loader(), loader()
        )


def test_bad_arguments():
    schedule = bp.Schedule((0.0,))
    with pytest.raises(bp.PruneError, match="learning_rate"):
        BranchPruning(schedule, learning_rate="reset")
    with pytest.raises(bp.PruneError, match="monitor"):
        BranchPruning(bp.Schedule((0.0,), hold=bp.Plateau()))
    with pytest.raises(bp.PruneError, match=r"val_loss.*mode='min'"):
        BranchPruning(bp.Schedule((0.0,), hold=bp.Plateau()), monitor="val_loss")
    with pytest.raises(bp.PruneError, match=r"recalibrate \(=-1\)"):
        BranchPruning(schedule, recalibrate=-1)
    pruning = BranchPruning(schedule, example=torch.randn(1, 1, 8, 8), target="nett")
    with pytest.raises(bp.PruneError, match="nett"):
        trainer(1, pruning).fit(ClassificationTask(network()), loader(), loader())
    with pytest.raises(bp.PruneError, match="example"):
        trainer(1, BranchPruning(schedule)).fit(ClassificationTask(network()), loader(), loader())
    with pytest.raises(bp.PruneError, match=r"learning_rate \(=0\)"):
        ClassificationTask(network(), learning_rate=0)

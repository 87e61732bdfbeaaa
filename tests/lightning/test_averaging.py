"""The moving average of the weights against one that is computed step by step."""

from functools import partial

import pytest
import torch
from killed_runs import check_same, go
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging
from small_training import TinyVGG, loader
from small_training import trainer as any_trainer

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.lightning.ema import WeightAverage

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

DECAY = 0.7
EXAMPLE = torch.randn(1, 1, 8, 8)
trainer = partial(any_trainer, num_sanity_val_steps=0)


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(average, weights):
    """The average after one more step."""
    if average is None:
        return weights
    return {n: DECAY * average[n] + (1 - DECAY) * weights[n] for n in weights}


class Watch(Callback):
    """Averages by itself, and compares with what is validated."""

    def __init__(self, network):
        self.network, self.average, self.compared, self.alphas = network, None, 0, []

    def on_train_batch_end(self, *_):
        self.average = moved(self.average, parameters(self.network()))
        self.weights = parameters(self.network())

    def on_validation_batch_start(self, *_):
        for name, value in parameters(self.network()).items():
            torch.testing.assert_close(value, self.average[name])
        alpha = getattr(self.network(), "alpha", {})
        self.alphas.append(set(alpha.values()))
        if alpha:
            torch.testing.assert_close(
                self.network().alphas.tolist(), [*alpha.values()], rtol=0, atol=1e-6
            )
        self.compared += 1

    def on_train_epoch_end(self, *_):
        for name, value in parameters(self.network()).items():
            assert torch.equal(value, self.weights[name])


def same(network, average):
    for name, value in parameters(network).items():
        torch.testing.assert_close(value, average[name])


def test_what_is_validated_and_kept_is_the_average():
    torch.manual_seed(0)
    task = ClassificationTask(TinyVGG(), learning_rate=0.05)
    watch = Watch(lambda: task.model)
    trainer(3, watch, WeightAverage(DECAY)).fit(task, loader(), loader())
    assert watch.compared == 9
    same(task.model, watch.average)
    assert any(not torch.equal(v, watch.weights[n]) for n, v in parameters(task.model).items())


def test_blended_weights_are_averaged_and_alpha_is_not():
    torch.manual_seed(0)
    pruning = BranchPruning(
        bp.Schedule((0.6, 0.3, 0.0)), example=EXAMPLE, monitor="metric/val_acc_branch"
    )
    task = ClassificationTask(TinyVGG(), learning_rate=0.05)
    watch = Watch(lambda: pruning.blended)
    trainer(3, pruning, watch, WeightAverage(DECAY)).fit(task, loader(), loader())
    assert watch.alphas == [{0.6}] * 3 + [{0.3}] * 3 + [{0.0}] * 3
    same(pruning.blended, watch.average)
    assert set(pruning.blended.alpha.values()) == {0.0} and not pruning.blended.alphas.any()
    assert pruning.small is not None and pruning.collapse_error < 1e-10


def test_the_branch_alone_is_that_of_the_average():
    torch.manual_seed(0)
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE, recalibrate=0)
    task, found = ClassificationTask(TinyVGG(), learning_rate=0.05), []

    class Score(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            with pruning.blended.branch_only():
                outputs = [(pruning.blended(x).argmax(1) == y).float().mean() for x, y in loader()]
            found.append(float(torch.stack(outputs).mean()))

        def on_train_epoch_end(self, trainer, pl_module):
            logged = trainer.callback_metrics["metric/val_acc_branch"]
            assert float(logged) == pytest.approx(found[-1])

    trainer(2, pruning, Score(), WeightAverage(DECAY)).fit(task, loader(), loader())
    assert len(found) == 2


AVERAGED = """
prune: {blend: {restore_best: false, average: 0.7}, finetune: {epochs: 2, average: 0.7}}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"), "whole", more=AVERAGED)


def test_a_killed_run_goes_on_with_its_average(whole, tmp_path, capsys):
    """Killed in four epochs of the blending, one of them twice, and in the fine-tuning."""
    run = partial(go, tmp_path, "killed", more=AVERAGED)
    run(kill=14)
    for kill in (13, 5, 18, 18):
        run("--resume", kill=kill)
    capsys.readouterr()
    check_same(whole, run("--resume"), ["dense", "prune", "finetune"])
    assert "goes on: dense, prune are done; finetune from the start" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["average: 1.5, restore_best: false", "average: 0.9"])
def test_settings_that_make_no_sense(text, tmp_path, capsys):
    with pytest.raises(AssertionError):
        go(tmp_path, "run", more=f"prune: {{blend: {{{text}}}}}\n")
    assert f"average (={text[9:12]})" in " ".join(capsys.readouterr().err.split())


class SeenAlphas(Callback):
    """Notes at which α the whole is validated."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.seen.append(set(pl_module.model.alpha.values()))


def test_an_average_of_lightnings_own_leaves_alpha_to_the_schedule():
    pruning, seen = BranchPruning(bp.Schedule((0.6, 0.0)), example=EXAMPLE), SeenAlphas()
    task = ClassificationTask(TinyVGG(), learning_rate=0.05)
    trainer(2, pruning, EMAWeightAveraging(decay=0.9), seen).fit(task, loader(), loader())
    assert seen.seen == [{0.6}] * 3 + [{0.0}] * 3
    assert task.model is pruning.small and pruning.collapse_error < 1e-10


def test_an_average_in_front_would_have_no_branches():
    pruning = BranchPruning(bp.Schedule((0.0,)), example=EXAMPLE)
    task = ClassificationTask(TinyVGG())
    with pytest.raises(bp.PruneError, match="put EMAWeightAveraging behind BranchPruning"):
        trainer(1, EMAWeightAveraging(decay=0.9), pruning).fit(task, loader(), loader())

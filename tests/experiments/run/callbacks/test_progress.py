"""Progress: one line an epoch that fits 80 columns; a bar only on a terminal, in long epochs."""

from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from small_training import loader, network, trainer

import branchprune as bp
from branchprune.experiments.run.callbacks.progress import StageProgress
from branchprune.lightning import BranchPruning, ClassificationTask

EXAMPLE = torch.randn(2, 1, 8, 8)


class Ticks:
    """A clock that goes on by some seconds each time it is read."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


def shown(stage="prune", pruning=True, terminal=False, seconds=0.0, epochs=3):
    """Train, and return what was written."""
    file = StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    progress = StageProgress(stage, "metric/val_acc", console, Ticks(seconds))
    schedule = bp.Schedule((0.5, 0.0), hold=1, final_hold=epochs - 1)
    callbacks = [BranchPruning(schedule, example=EXAMPLE)] if pruning else []
    module = ClassificationTask(network())
    trainer(epochs, *callbacks, progress).fit(module, loader(), loader(seed=1))
    return file.getvalue()


def test_a_line_an_epoch_says_what_matters():
    head, *lines = shown().splitlines()
    assert head.split() == "stage epoch α loss val_acc branch alone time left".split()
    assert [line.split()[:3] for line in lines] == [
        ["prune", "1/3", "0.5"],
        ["prune", "2/3", "0"],
        ["prune", "3/3", "0"],
    ]
    assert all(0 <= float(cell) <= 1 for line in lines for cell in line.split()[4:6])
    last = lines[-1].split()
    assert last[4] == last[5]  # at α = 0 the model is its branch


def test_lines_without_branches_have_no_columns_for_them():
    head, *lines = shown("dense", pruning=False).splitlines()
    assert head.split() == "stage epoch loss val_acc time left".split()
    assert len(lines) == 3


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("seconds", [0.0, 5e4])
def test_lines_fit_80_columns(terminal, seconds):
    text = shown("round_01_prune_with_a_long_name", terminal=terminal, seconds=seconds)
    lines = [Text.from_ansi(part).plain for line in text.splitlines() for part in line.split("\r")]
    assert max(map(cell_len, lines)) <= 80
    assert sum("round_01_prun…" in line and "/3 " in line for line in lines) >= 3


def test_columns_stand_below_their_headings():
    lines = shown().splitlines()
    assert len({cell_len(line) for line in lines}) == 1


def test_no_bar_in_a_log_file():
    assert len(shown(seconds=1e3).splitlines()) == 4
    assert "━" not in shown(seconds=1e3)


def test_a_bar_on_a_terminal_in_epochs_that_take_long():
    assert "━" not in shown(terminal=True)
    text = shown(terminal=True, seconds=10)
    assert "training" in text and "validating" in text and "━" in text


def test_time_left_is_that_of_the_epochs_to_come():
    class Epochs(Ticks):  # read once when training begins, once when each of its epochs does
        def __call__(self):
            self.reads = getattr(self, "reads", -1) + 1
            return 60.0 * ((self.reads + 1) // 2)

    file = StringIO()
    console = Console(file=file, width=80)
    progress = StageProgress("dense", "metric/val_acc", console, Epochs(0))
    trainer(3, progress).fit(ClassificationTask(network()), loader(), loader(seed=1))
    assert [line.split()[-1] for line in file.getvalue().splitlines()[1:]] == [
        "2:00",
        "1:00",
        "0:00",
    ]


def state(**changes):
    """What a trainer says of itself, at epoch 4 of 8."""
    known = {"current_epoch": 4, "max_epochs": 8, "callback_metrics": {}, "sanity_checking": False}
    return SimpleNamespace(
        **known | {"num_training_batches": 2, "num_val_batches": [3, 4]} | changes
    )


def test_a_training_that_goes_on_counts_its_own_epochs_and_the_mean_loss():
    file, times = StringIO(), iter([0.0, 0.0, 60.0])
    console = Console(file=file, width=80)
    progress = StageProgress("dense", "metric/val_acc", console, lambda: next(times))
    progress.on_train_start(state(), None)
    progress.on_train_epoch_start(state(), None)
    for number, loss in enumerate((1.0, 3.0)):
        progress.on_train_batch_end(state(), None, {"loss": torch.tensor(loss)}, None, number)
    progress.on_train_epoch_end(state(), None)
    assert file.getvalue().splitlines()[1].split() == ["dense", "5/8", "2.0000", "3:00"]


def test_a_schedule_that_ends_early_says_so():
    file = StringIO()
    progress = StageProgress("prune", "metric/val_acc", Console(file=file, width=80))
    progress.on_train_end(state(current_epoch=8), None)
    assert file.getvalue() == ""
    progress.on_train_end(state(current_epoch=5), None)
    assert file.getvalue() == "prune: the schedule ended after 5 epochs\n"


def test_the_bar_counts_all_validation_sets_and_goes_away_with_an_error():
    console = Console(file=StringIO(), width=80, force_terminal=True)
    progress = StageProgress("dense", "metric/val_acc", console, Ticks(10))
    progress.on_train_start(state(), None)
    progress.on_train_epoch_start(state(), None)
    progress.on_validation_start(state(), None)
    progress.on_validation_batch_end(state(), None, None, None, batch_idx=1, dataloader_idx=1)
    bar = progress.bar
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (5, 7)
    progress.on_exception(state(), None, RuntimeError())
    assert progress.bar is None and not bar.live.is_started

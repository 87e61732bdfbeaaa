"""Ctrl-C and SIGTERM, sent to real processes: status, what is saved, the command that goes on."""

import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from killed_runs import CONFIG, Data

from branchprune.cli import main
from branchprune.experiments import interruption
from branchprune.experiments.interruption import (
    NAMES,
    SIGNALS,
    Interrupted,
    how_to_go_on,
    interruptible,
    saved,
)
from branchprune.experiments.run.experiment import _Run
from branchprune.runtimes.latency import compare_latency

HELD = """
data: {class_path: test_interruption.Held}
task: {class_path: branchprune.lightning.ClassificationTask, init_args: {learning_rate: 0.05}}
prune:
  blend: {levels: [0.5, 0.0], hold: 1, restarts: [], restore_best: false, learning_rate: keep}
"""
COMPARISON = """
name: held
base: [config.yaml, more.yaml]
seeds: [3]
budgets: {few: {epochs: 2}}
variants: {same: {}}
methods: {blended: {rows: [same]}}
"""


class Held(Data):
    """Stops once, where the file `place` says, and says so by the file `held`."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, int] = {}

    def hold(self, name):
        self.times[name] = self.times.get(name, 0) + 1
        place, held = Path("place"), Path("held")
        if place.exists() and place.read_text() == f"{name} {self.times[name]}":
            place.unlink()
            held.touch()
            time.sleep(300)

    def setup(self, stage):
        self.hold(f"setup for {stage}")

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer is not None and self.trainer.training:
            self.hold("training batch")
        return batch

    def test_dataloader(self):
        self.hold("test set")
        return super().test_dataloader()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "branchprune.experiments.run.result.compare_latency",
        lambda dense, small, batch, _: compare_latency(dense, small, batch, seconds=0.0),
    )
    Path("config.yaml").write_text(CONFIG)
    Path("more.yaml").write_text(HELD)
    Path("compare.yaml").write_text(COMPARISON)


@pytest.fixture(scope="module")
def processes():
    """What forks processes, from one that has imported everything: importing takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["branchprune.experiments.run.experiment", __name__])
    return context


def child(folder, args):
    os.chdir(folder)
    with Path("output.txt").open("w") as output, Path("errors.txt").open("w") as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = output, errors
        _Run._rehearse = lambda *_: None  # it would be held, too
        sys.exit(main(args))


def interrupt(processes, place, number, *args):
    """Send a signal to a command where it is held; return its status and what it then says."""
    Path("place").write_text(place)
    process = processes.Process(target=child, args=(Path.cwd(), args))
    process.start()
    while not Path("held").exists() and process.is_alive():
        time.sleep(0.02)
    assert process.is_alive(), Path("errors.txt").read_text()
    os.kill(process.pid, number)
    process.join(60)
    error = Path("errors.txt").read_text()
    said, kept, how = error[error.index("branchprune: ") :].splitlines()
    assert said == f"branchprune: interrupted by {NAMES[number]}"
    how, command = how.split(": ")
    return process.exitcode, kept, how, command


def go_on(line):
    """Carry out the command that was printed."""
    program, *args = shlex.split(line)
    assert program == "branchprune"
    return main(args)


RUN = ["config.yaml", "more.yaml", "--output", "the run"]


@pytest.mark.parametrize(
    ("place", "saved"),
    [
        (
            "training batch 18",
            "dense.safetensors, prune/last.ckpt (the epoch that was interrupted begins anew)",
        ),
        ("test set 5", "dense.safetensors, prune/small.safetensors, small.safetensors"),
    ],
    ids=["training", "measuring"],
)
def test_a_run_goes_on_by_the_command_that_it_prints(folder, processes, place, saved):
    status, kept, how, command = interrupt(processes, place, signal.SIGINT, "run", *RUN)
    assert (status, kept, how) == (130, f"saved in the run: {saved}", "to go on")
    assert command == "branchprune run config.yaml more.yaml --output 'the run' --resume"
    assert not Path("the run/result.json").exists()
    assert go_on(command) == 0
    assert json.loads(Path("the run/result.json").read_text())["epochs"] == {"dense": 2, "prune": 2}


def test_a_dense_training_that_is_terminated(folder, processes):
    args = ["dense", *RUN]
    status, kept, how, command = interrupt(processes, "training batch 3", signal.SIGTERM, *args)
    assert (status, kept, how) == (143, "no checkpoint is written yet", "to go on")
    assert go_on(command) == 0 and Path("the run/dense.safetensors").exists()


def test_before_anything_is_written(folder, processes):
    args = ["run", *RUN, "--overwrite", "true"]
    Path("the run").mkdir()
    Path("the run/small.safetensors").touch()  # of an earlier run
    status, kept, how, command = interrupt(processes, "setup for fit 1", signal.SIGTERM, *args)
    assert (status, kept, how) == (143, "nothing was saved", "to start again")
    assert command == shlex.join(["branchprune", *args])


def test_a_comparison_ends_its_children(folder, processes):
    args = ["compare", "compare.yaml", "--output", "all"]
    status, kept, how, command = interrupt(processes, "training batch 3", signal.SIGINT, *args)
    assert (status, kept, how) == (130, "what is done is kept", "to go on")
    assert command == shlex.join(["branchprune", *args])
    assert "interrupted by SIGTERM" in Path("all/dense.log").read_text()


def test_all_that_a_run_goes_on_from_is_named(tmp_path):
    files = ["dense.safetensors", "sparsify/wide.safetensors", "finetune/last.ckpt", "result.json"]
    for i, name in enumerate([*files, "sparsify/last.ckpt", "sparsify/finished.json"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (i, i))
    assert saved(tmp_path) == files


@pytest.fixture
def sent(monkeypatch):
    """Signals that a process sends to itself, which do not reach it."""
    sent = []
    monkeypatch.setattr(interruption.os, "kill", lambda _, number: sent.append(number))
    return sent


def test_the_same_signal_again_ends_the_process_at_once_and_another_is_ignored(sent):
    before = [*map(signal.getsignal, SIGNALS)]
    with interruptible():
        with pytest.raises(Interrupted) as interrupted:
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.value.status == 128 + 15
        signal.raise_signal(signal.SIGINT)
        assert sent == []
        signal.raise_signal(signal.SIGTERM)
        assert sent == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [*map(signal.getsignal, SIGNALS)] == before


def test_a_worker_ends_as_if_nobody_had_asked_for_interruptions(sent, monkeypatch):
    with interruptible():
        monkeypatch.setattr(interruption.os, "getpid", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert sent == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_thread_that_cannot_receive_signals_works_without():
    def complain():
        return main(["report", "none"])

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(complain).result() == 2


def test_a_run_that_is_resumed_goes_on_by_its_own_command(tmp_path):
    (tmp_path / "dense.safetensors").touch()
    (interrupted := Interrupted(signal.SIGINT)).folder = tmp_path
    said = how_to_go_on(interrupted, "run", ["c.yaml", "--resume", "--output", "x"]).splitlines()
    assert said[1] == f"saved in {tmp_path}: dense.safetensors"
    assert said[2] == "to go on: branchprune run c.yaml --resume --output x"

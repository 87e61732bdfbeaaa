"""Runs that are killed, interrupted, raced, or whose disk fails, and what they leave."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

import torch
from pytorch_lightning import LightningDataModule
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torture_trial import Trial, is_clear

from branchprune.cli import main
from branchprune.experiments.files import read_lines
from branchprune.runtimes.latency import compare_latency

CONFIG = """
name: torture
seed: 3
accelerator: cpu
model: {class_path: torture_runs.Net}
data: {class_path: torture_runs.Data}
task:
  class_path: branchprune.lightning.ClassificationTask
  init_args: {learning_rate: 0.05}
dense: {epochs: 2}
prune:
  criterion: {name: random}
  blend: {levels: [0.5, 0.0], hold: 1, restarts: [0.02], learning_rate: restart}
  finetune: {epochs: 2}
"""
MODELS = ("dense.safetensors", "small.safetensors")
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
ERRORS = {"ENOSPC": 28, "EIO": 5}
PRELOADED = [
    *("torture_runs", "branchprune.experiments.run.experiment", "branchprune.reports.report"),
    "torch.utils.tensorboard",
]


class Net(nn.Sequential):
    """A network that draws random numbers while it is trained."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.Flatten(), nn.Linear(128, 3)),
        )


class Data(LightningDataModule):
    """Random images, shuffled."""

    def _batches(self, seed: int, shuffle: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 1, 4, 4, generator=generator)
        y = (x.mean((1, 2, 3)) > 0).long()
        return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the batches to train on."""
        return self._batches(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the batches to validate on."""
        return self._batches(1)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the batches to test on."""
        return self._batches(2)


class Runs:
    """Starts runs in processes of their own, from one that has imported everything.

    Args:
        folder: Where they work.
        library: What makes writes fail, to be preloaded; None: nothing does.
    """

    def __init__(self, folder: Path, library: Path | None = None) -> None:
        self.folder = folder
        self.processes: ForkServerContext = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        if library is not None:
            os.environ["LD_PRELOAD"] = str(library)  # for the server, which starts with the first
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(CONFIG)
        self._counting = {"TORTURE_AT": "0", "TORTURE_COUNT": str(folder / "count")}
        self.reference, self.seconds = self._refer()

    def _refer(self) -> tuple[dict[str, dict[str, torch.Tensor]], float]:
        """Return the weights of an undisturbed run, and how long it takes."""
        for name in ("first", "reference"):  # the first starts the server, too
            since = time.perf_counter()
            status, said = self.run(place := self.folder / name, self._counting)
            assert status == 0, said
        weights = {name: load_file(place / "run" / name) for name in MODELS}
        return weights, time.perf_counter() - since

    def start(self, place: Path, env: Mapping[str, str] | None = None) -> ForkServerProcess:
        """Start a run, or go on with it."""
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.yaml").write_text(CONFIG)
        process = self.processes.Process(target=child, args=(place, dict(env or {})))
        process.start()
        return process

    def run(self, place: Path, env: Mapping[str, str] | None = None) -> tuple[int | None, str]:
        """Carry out a run; return its status and what it said of errors."""
        process = self.start(place, env)
        process.join()
        return process.exitcode, said(place, process.pid)

    def check(self, place: Path, what: str, how: str = "survived") -> Trial:
        """Go on with a run to its end, and compare it with the undisturbed one."""
        status, complaint = self.run(place)
        if status != 0:
            return Trial("wrong", f"{what}: --resume ends in {status}: {complaint}")
        for name, weights in self.reference.items():
            found = load_file(place / "run" / name)
            if any(not torch.equal(found[key], weights[key]) for key in weights):
                return Trial("wrong", f"{what}: other weights in {name}")
        lines = len(read_lines(place / "results" / "torture.jsonl"))
        if lines != 1:
            return Trial("wrong", f"{what}: {lines} lines of results")
        return Trial(how)

    def interrupted(self, number: signal.Signals, count: int, seed: int) -> Iterator[Trial]:
        """Send a signal at random moments, and go on."""
        chance = random.Random(seed)
        for i in range(count):
            place, delay = self.folder / f"{number.name}_{i}", chance.uniform(0, self.seconds)
            process = self.start(place)
            process.join(delay)
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)
            process.join()
            what = f"{number.name} after {delay:.3f} s"
            if process.exitcode not in (0, STATUS[number], -number):  # which has no handler yet
                complaint = said(place, process.pid)
                yield Trial("wrong", f"{what}: status {process.exitcode}: {complaint}")
                continue
            yield self.check(place, what)

    def writes(self) -> int:
        """Return how many writes the undisturbed run took."""
        return int(Path(self._counting["TORTURE_COUNT"]).read_text())

    def failing(self, error: str, count: int | None, seed: int) -> Iterator[Trial]:
        """Let every write fail from one on, at each one or at some of them, and go on."""
        places = [*range(1, self.writes() + 1)]
        if count is not None:
            places = sorted(random.Random(seed).sample(places, min(count, len(places))))
        for at in places:
            place, what = self.folder / f"{error}_{at}", f"{error} at write {at}"
            env = {"TORTURE_AT": str(at), "TORTURE_ERRNO": str(ERRORS[error])}
            status, complaint = self.run(place, env)
            if status not in (0, 1, 2) or (status and not is_clear(complaint)):
                yield Trial("wrong", f"{what}: status {status}: {complaint}")
                continue
            yield self.check(place, what, "refused" if status else "survived")

    def races(self, count: int, seed: int) -> Iterator[Trial]:
        """Start two runs with one folder and one file of results, a random moment apart."""
        chance = random.Random(seed)
        for i in range(count):
            place, apart = self.folder / f"race_{i}", chance.uniform(0, 0.3)
            first = self.start(place)
            time.sleep(apart)
            second = self.start(place)
            ends = []
            for process in (first, second):
                process.join()
                ends.append((process.exitcode, said(place, process.pid)))
            what, refused = f"two runs {apart:.3f} s apart", [end for end in ends if end[0]]
            if (
                len(refused) != 1
                or not is_clear(refused[0][1])
                or "written by" not in refused[0][1]
            ):
                yield Trial("wrong", f"{what}: {ends}")
                continue
            yield self.check(place, what, "refused")


def child(place: Path, env: Mapping[str, str]) -> None:
    """Carry out a run in a process of its own, without what takes time and shows nothing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as it is in a shell before the program's own
    os.chdir(place)
    errors = Path(f"errors_{os.getpid()}.txt").open("w")  # noqa: SIM115
    os.dup2(errors.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = open(os.devnull, "w"), errors  # noqa: SIM115, PTH123
    torch.set_num_threads(1)
    os.environ |= {**env, "TORTURE_FOLDER": str(place / "r")}  # run and results
    with ExitStack() as patches:
        for chart in ("blending", "rounds", "losses"):
            patches.enter_context(patch(f"branchprune.reports.plots.{chart}", lambda *_, **__: ""))
        patches.enter_context(patch("branchprune.experiments.run.result.compare_latency", _once))
        sys.exit(main(["run", "config.yaml", "--output", "run", "--resume"]))


def _once(dense: nn.Module, small: nn.Module, x: torch.Tensor, _: float) -> object:
    return compare_latency(dense, small, x, seconds=0.0)


def said(place: Path, pid: int | None) -> str:
    """Return what a run said of errors."""
    path = place / f"errors_{pid}.txt"
    return path.read_text().strip() if path.exists() else ""


def library(folder: Path) -> Path | None:
    """Build what makes writes fail; None where there is no compiler."""
    source = Path(__file__).with_name("failing_writes.c")
    built = folder / "failing_writes.so"
    try:
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return built

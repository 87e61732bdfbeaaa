"""Run what is missing of the paper's experiments, most important first, within a time budget.

Call it again to go on: runs that were broken off continue from their last epoch, and what has a
line in `scripts/results/` is not run again.

    python scripts/reproduce.py --preset cpu --jobs 2
    python scripts/reproduce.py --preset paper --overlay configs/gpu.yaml --jobs 4 --minutes 8
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from branchprune.json_lines import read_lines

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
VGG, AUTOENCODER = "vgg16_cifar10", "autoencoder_carla"
HEADLINES = ((VGG, ""), (AUTOENCODER, ""), (VGG, "three_stage"), (VGG, "ours"))
VARIANTS = (
    *("early_stopping", "multiplicative", "noise", "regression", "frozen"),
    *("frozen_until_small", "weight_decay", "larger_steps", "straight_to_small"),
)
COMMAND = [sys.executable, "-m", "branchprune.cli"]


@dataclass(frozen=True)
class Job:
    """One run: an experiment, a variant of it ("" for the paper's own), a seed."""

    experiment: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.experiment}/{self.variant or 'paper'}-{self.seed}"

    def files(self, preset: str, overlays: Sequence[Path] = ()) -> list[Path]:
        """Return the configuration files, the later of which override the earlier."""
        folder = CONFIGS / self.experiment
        files = [CONFIGS / f"{self.experiment}.yaml", folder / f"{preset}.yaml"]
        if self.variant:
            files += [folder / f"{self.variant}.yaml", folder / f"{self.variant}.{preset}.yaml"]
        return [*(file for file in files if file.exists()), *overlays]

    def key(self, preset: str, overlays: Sequence[Path] = ()) -> tuple[Any, ...]:
        """Return what its line of results is known by."""
        settings: dict[str, Any] = {}
        for file in self.files(preset, overlays):
            settings |= yaml.safe_load(file.read_text())
        return settings["name"], settings["method"], settings["preset"], self.seed


def all_jobs(seeds: int) -> list[Job]:
    """Return every run, the most important first."""
    headlines = [*HEADLINES, (AUTOENCODER, "at_once")]
    jobs = [Job(*headline, seed) for seed in range(seeds) for headline in headlines]
    return [*jobs, *(Job(VGG, variant, 0) for variant in VARIANTS)]


class Reproduction:
    """Starts jobs and stops them.

    Args:
        options: What the command line says.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.runs = options.runs / options.preset
        self.running: dict[Job, subprocess.Popen[bytes]] = {}
        self.failed: set[Job] = set()

    def go(self) -> int:
        """Run until all is done or the time is over; return how many jobs failed."""
        end = time.monotonic() + 60 * self.options.minutes
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else the runs would go on alone
        try:
            while time.monotonic() < end:
                self._collect()
                while len(self.running) < self.options.jobs and (job := self._next()):
                    self._start(job)
                if not self.running:
                    break
                time.sleep(0.2)
        finally:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                _end(process)
        done, missing = self._done(), [job for job in self._jobs() if not self._is_done(job)]
        print(f"{len(done)} lines of results, {len(missing)} runs missing", flush=True)
        return len(self.failed)

    def _jobs(self) -> list[Job]:
        return [j for j in all_jobs(self.options.seeds) if fnmatch(j.name, self.options.only)]

    def _results(self, experiment: str) -> Path:
        path: Path = self.options.results / f"{experiment}.jsonl"
        return path

    def _done(self) -> set[tuple[Any, ...]]:
        files = [self._results(experiment) for experiment in (VGG, AUTOENCODER)]
        lines = [line for file in files if file.exists() for line in read_lines(file)]
        keys = ("experiment", "method", "preset", "seed")
        return {tuple(line[key] for key in keys) for line in lines}

    def _is_done(self, job: Job) -> bool:
        return job.key(self.options.preset, self._overlays(job)) in self._done()

    def _overlays(self, job: Job) -> list[Path]:
        """Return the files that the command line adds."""
        return [*self.options.overlay, *(self.options.cifar10 if job.experiment == VGG else [])]

    def _next(self) -> Job | None:
        """Return the first job that can run now."""
        for job in self._jobs():
            if job in self.running or job in self.failed or self._is_done(job):
                continue
            if not job.variant or self._dense(job).exists() or not self._waits(job):
                return job
        return None

    def _dense(self, job: Job) -> Path:
        """Return where the dense model is that the variants of a seed have in common."""
        path: Path = self.runs / Job(job.experiment, "", job.seed).name / "dense.safetensors"
        return path

    def _waits(self, job: Job) -> bool:
        """Return whether the dense model is still to come from another run."""
        parent = Job(job.experiment, "", job.seed)
        return parent in self._jobs() and not self._is_done(parent) and parent not in self.failed

    def _start(self, job: Job) -> None:
        options, dense = self.options, self._dense(job)
        command = ["run", *map(_shown, job.files(options.preset, self._overlays(job)))]
        command += ["--seed", str(job.seed), "--output", _shown(self.runs / job.name), "--resume"]
        command += ["--results", _shown(self._results(job.experiment))]
        if job.variant and dense.exists() and not _trains_its_own(self.runs / job.name):
            command += ["--dense.epochs", "0", "--dense.checkpoint", _shown(dense)]
        log = self.runs / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        with log.open("ab") as file:
            self.running[job] = subprocess.Popen(
                [*COMMAND, *command], stdout=file, stderr=file, env=environment, cwd=ROOT
            )
        print(f"{job.name} begins", flush=True)

    def _collect(self) -> None:
        for job, process in [*self.running.items()]:
            if process.poll() is None:
                continue
            del self.running[job]
            failed = process.returncode != 0 or not self._is_done(job)
            self.failed |= {job} if failed else set()
            print(f"{job.name} {'FAILED, see its log' if failed else 'is done'}", flush=True)


def _trains_its_own(folder: Path) -> bool:
    """Return whether a run has begun there that trains its own dense model."""
    stored = folder / "config.yaml"
    settings = (stored.exists() and yaml.safe_load(stored.read_text())) or {}
    return "dense" in settings and not settings["dense"]["checkpoint"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end, and end it if it does not."""
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shown(path: Path) -> str:
    """Return a path relative to the project, where it is inside."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="cpu", choices=["cpu", "paper"])
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="more YAML files")
    cifar10 = "YAML file with the data of CIFAR-10, such as configs/data/cifar10_jpeg.yaml"
    parser.add_argument("--cifar10", type=Path, nargs="*", default=[], help=cifar10)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the headline runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    minutes = "time budget; the runs take up to 20 seconds more to end"
    parser.add_argument("--minutes", type=float, default=1e6, help=minutes)
    parser.add_argument("--only", default="*", help="pattern of runs, as vgg16_cifar10/*-0")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce")
    parser.add_argument("--results", type=Path, default=ROOT / "scripts" / "results")
    return int(Reproduction(parser.parse_args(args)).go() > 0)


if __name__ == "__main__":
    sys.exit(main())

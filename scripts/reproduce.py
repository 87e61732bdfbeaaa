"""Run what is missing of the paper's experiments, most important first, within a time budget.

Call it again to go on: runs that were broken off continue from their last epoch, and what has a
line in `scripts/results/` is not run again. The variants of a seed begin with the dense model of
its first run; where that is neither in `--runs` nor to come, they are refused.

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
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from branchprune.config import parse
from branchprune.errors import PruneError
from branchprune.json_lines import read_lines

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
VGG, AUTOENCODER = "vgg16_cifar10", "autoencoder_carla"
HEADLINES = ((VGG, ""), (AUTOENCODER, ""), (VGG, "three_stage"), (VGG, "ours"))
VARIANTS = (
    *("early_stopping", "multiplicative", "noise", "regression", "frozen"),
    *("frozen_until_small", "weight_decay", "larger_steps", "straight_to_small"),
)
KEYS = ("experiment", "method", "preset", "dataset", "seed")
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
        return *_described(*self.files(preset, overlays)), self.seed

    @property
    def parent(self) -> Job:
        """The run that trains the dense model of its seed."""
        return Job(self.experiment, "", self.seed)


@cache
def _described(*files: Path) -> tuple[str, str, str, str]:
    """Return experiment, method, preset and data set of a configuration."""
    config = parse([*map(str, files), "--output", "unused"])
    return config.name, config.method, config.preset, config.dataset


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
        """Run until all is done or the time is over; return how many jobs failed or cannot run."""
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
        refused = {job: reason for job in missing if (reason := self._refusal(job))}
        for job, reason in refused.items():
            print(f"{job.name} is refused: {reason}", flush=True)
        print(f"{len(done)} lines of results, {len(missing)} runs missing", flush=True)
        return len(self.failed | refused.keys())

    def _jobs(self) -> list[Job]:
        return [j for j in all_jobs(self.options.seeds) if fnmatch(j.name, self.options.only)]

    def _results(self, experiment: str) -> Path:
        path: Path = self.options.results / f"{experiment}.jsonl"
        return path

    def _done(self) -> set[tuple[Any, ...]]:
        files = [self._results(experiment) for experiment in (VGG, AUTOENCODER)]
        lines = [line for file in files if file.exists() for line in read_lines(file)]
        return {tuple(line[key] for key in KEYS) for line in lines}

    def _key(self, job: Job) -> tuple[Any, ...]:
        return job.key(self.options.preset, self._overlays(job))

    def _is_done(self, job: Job) -> bool:
        return self._key(job) in self._done()

    def _overlays(self, job: Job) -> list[Path]:
        """Return the files that the command line adds."""
        return [*self.options.overlay, *(self.options.cifar10 if job.experiment == VGG else [])]

    def _next(self) -> Job | None:
        """Return the first job that can run now."""
        for job in self._jobs():
            if job in self.running or job in self.failed or self._is_done(job):
                continue
            if self._has_data(job) and (not job.variant or self._has_dense(job)):
                return job
        return None

    def _has_data(self, job: Job) -> bool:
        """Return whether no run of the experiment may still be downloading its data."""
        others = [other for other in self.running if other.experiment == job.experiment]
        return all((self.runs / other.name / "config.yaml").exists() for other in others)

    def _dense(self, job: Job) -> Path:
        """Return where the dense model is that the variants of a seed have in common."""
        path: Path = self.runs / job.parent.name / "dense.safetensors"
        return path

    def _has_dense(self, job: Job) -> bool:
        """Return whether the dense model is there, and was trained with the job's data set."""
        path = self._dense(job)
        stored = path.with_name("config.yaml")
        if not path.exists() or not stored.exists():
            return False
        with suppress(PruneError):
            return (*_described(stored), job.seed) == self._key(job.parent)
        return False

    def _refusal(self, job: Job) -> str | None:
        """Return why a run can never start; None if it can, or may as soon as others did."""
        if not job.variant or self._has_dense(job):
            return None
        parent, dataset = job.parent, self._key(job)[KEYS.index("dataset")]
        if parent in self.failed:
            reason = "failed"
        elif self._is_done(parent):
            reason = "has its line already: give another folder to --results, or its own to --runs"
        elif parent not in self._jobs():
            reason = "is left out by --only: run it first"
        else:
            return None
        return (
            f"no dense model of {dataset} in {self._dense(job).parent}, and {parent.name} {reason}"
        )

    def _start(self, job: Job) -> None:
        options, dense = self.options, self._dense(job)
        command = ["run", *map(_shown, job.files(options.preset, self._overlays(job)))]
        command += ["--seed", str(job.seed), "--output", _shown(self.runs / job.name), "--resume"]
        command += ["--results", _shown(self._results(job.experiment))]
        if options.frames and job.experiment == AUTOENCODER:
            command += ["--data.init_args.root", _shown(options.frames)]
        if job.variant:
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
    frames = "folder of the autoencoder's frames, if not data/carla"
    parser.add_argument("--frames", type=Path, help=frames)
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

"""Run what is missing of the paper's experiments, most important first, within a time budget.

Call it again to go on: runs that were broken off continue from their last epoch, and what has a
line of results is not run again. The lines are in the folder of the runs, or with `--record` those
that are committed, in `scripts/results/`. The variants of a seed begin with the dense model of its
first run; where that is neither in `--runs` nor to come, they are refused.

    python scripts/reproduce.py --preset cpu --jobs 2
    python scripts/reproduce.py --preset paper --overlay configs/gpu.yaml --jobs 4 --minutes 8

With `--next` the long runs of queue.yaml are made instead, one after the other; see run_queue.py.

    python scripts/reproduce.py --next --threads 2 --record
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import run_queue

from branchprune.errors import PruneError
from branchprune.experiments.files import read_lines
from branchprune.experiments.jobs import Job, JobRunner, shown
from branchprune.experiments.run.config import parse
from branchprune.experiments.variants import read_file

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RECORDED = ROOT / "configs", ROOT / "scripts" / "results"
VGG, AUTOENCODER = "vgg16_cifar10", "autoencoder_carla"
HEADLINES = ((VGG, ""), (AUTOENCODER, ""), (VGG, "three_stage"), (VGG, "ours"))
VARIANTS = (
    *("early_stopping", "multiplicative", "noise", "regression", "frozen"),
    *("frozen_until_small", "weight_decay", "larger_steps", "straight_to_small"),
)
PRESETS = ("cpu", "paper")
KEYS = ("experiment", "method", "preset", "dataset", "seed")
COMMAND = [sys.executable, "-m", "branchprune"]


@dataclass(frozen=True)
class Run:
    """One run: an experiment, a variant of it ("" for the paper's own), a seed."""

    experiment: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.experiment}/{self.variant or 'paper'}-{self.seed}"

    def file(self) -> Path:
        """Return its configuration file."""
        return CONFIGS / f"{'recipe' if self.variant == 'ours' else self.experiment}.yaml"

    def rows(self, preset: str, jpeg: bool = False) -> list[str]:
        """Return the variants of the file that make it.

        Args:
            preset: "cpu" or "paper"; the files are the paper's.
            jpeg: Take CIFAR-10 from a folder of images.
        """
        rows = ["jpeg"] if jpeg and self.experiment == VGG else []
        rows += [] if preset == "paper" else [preset]
        return [*rows, *([] if self.variant in ("", "ours") else [self.variant])]

    def options(self, preset: str, jpeg: bool = False, overlays: Sequence[Path] = ()) -> list[str]:
        """Return the files and variants as a command line has them."""
        files = [_shown(file) for file in (self.file(), *overlays)]
        return [*files, *(part for row in self.rows(preset, jpeg) for part in ("--variant", row))]

    def key(
        self, preset: str, jpeg: bool = False, overlays: Sequence[Path] = ()
    ) -> tuple[Any, ...]:
        """Return what its line of results is known by."""
        return *_described(*self.options(preset, jpeg, overlays)), self.seed

    def method(self, preset: str) -> str:
        """Return what its line of results calls the method."""
        layers = read_file(self.file()).layers(self.rows(preset))
        return [str(layer["method"]) for layer in layers if "method" in layer][-1]

    @property
    def changes_dense(self) -> bool:
        """Whether the variant changes the dense training, too, not the pruning alone."""
        changed = read_file(self.file()).variants.get(self.variant, {})
        return not {*changed} <= {"method", "prune"}

    @property
    def parent(self) -> Run:
        """The run that trains the dense model of its seed."""
        return Run(self.experiment, "", self.seed)


@cache
def _described(*options: str) -> tuple[str, str, str, str]:
    """Return experiment, method, preset and data set of a configuration."""
    with chdir(ROOT):
        config = parse([*options, "--output", "unused"])
    method = config.method or config.prune.algorithm_key
    return config.name, method, config.preset, config.dataset


def all_runs(seeds: int) -> list[Run]:
    """Return every run, the most important first."""
    headlines = [*HEADLINES, (AUTOENCODER, "at_once")]
    runs = [Run(*headline, seed) for seed in range(seeds) for headline in headlines]
    return [*runs, *(Run(VGG, variant, 0) for variant in VARIANTS)]


def todays_command(line: Mapping[str, Any]) -> str:
    """Return the command that makes the run of a line today.

    A variant that changes the dense training, too, begins with the dense model of the paper's run.

    Args:
        line: A line of results; its own command may be of an older program.

    Raises:
        PruneError: No run has this line.
    """
    known, preset, seed = tuple(line[key] for key in KEYS), line["preset"], line["seed"]
    for run in [
        run for run in all_runs(seed + 1) if (run.experiment, run.seed) == (known[0], seed)
    ]:
        if preset not in PRESETS or run.method(preset) != line["method"]:
            continue
        for jpeg in (True, False):
            if run.key(preset, jpeg) == known:
                command = ["branchprune", "run", *run.options(preset, jpeg), "--seed", str(seed)]
                dense = ROOT / "runs" / run.experiment / "dense.safetensors"
                return shlex.join([*command, *(_from(dense) if run.changes_dense else [])])
    raise PruneError(f"{known} is no run of {VGG} or {AUTOENCODER}")


def _from(dense: Path) -> list[str]:
    """Return the options of a run that begins with a dense model."""
    return ["--dense.epochs", "0", "--dense.checkpoint", _shown(dense)]


class Reproduction:
    """Starts jobs and stops them.

    Args:
        options: What the command line says.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.runs = options.runs / options.preset
        self.runner = JobRunner(
            self.runs,
            options.jobs,
            options.threads,
            options.minutes,
            cwd=ROOT,
            say=partial(print, flush=True),
        )

    def go(self) -> int:
        """Run until all is done or the time is over; return how many runs failed or cannot run."""
        runs = {run.name: run for run in self._runs()}
        missing = [runs[job.name] for job in self.runner.run([*map(self._job, runs.values())])]
        refused = {run.name: reason for run in missing if (reason := self._refusal(run))}
        for name, reason in refused.items():
            print(f"{name} is refused: {reason}", flush=True)
        lines = len(self._done())
        print(f"{lines} lines of results, {len(missing)} runs missing", flush=True)
        return len(self.runner.failed | refused.keys())

    def _job(self, run: Run) -> Job:
        return Job(
            run.name,
            command=partial(self._command, run),
            done=partial(self._is_done, run),
            ready=partial(self._is_ready, run),
        )

    def _is_ready(self, run: Run) -> bool:
        return self._has_data(run) and (not run.variant or self._has_dense(run))

    def _runs(self) -> list[Run]:
        return [run for run in all_runs(self.options.seeds) if fnmatch(run.name, self.options.only)]

    def _results(self, experiment: str) -> Path:
        recorded = RECORDED if self.options.record else self.runs / "results"
        path: Path = (self.options.results or recorded) / f"{experiment}.jsonl"
        return path

    def _done(self) -> set[tuple[Any, ...]]:
        files = [self._results(experiment) for experiment in (VGG, AUTOENCODER)]
        lines = [line for file in files if file.exists() for line in read_lines(file)]
        return {tuple(line[key] for key in KEYS) for line in lines}

    def _key(self, run: Run) -> tuple[Any, ...]:
        options = self.options
        return run.key(options.preset, options.jpeg, options.overlay)

    def _is_done(self, run: Run) -> bool:
        return self._key(run) in self._done()

    def _has_data(self, run: Run) -> bool:
        """Return whether no run of the experiment may still be downloading its data."""
        others = [name for name in self.runner.running if name.startswith(f"{run.experiment}/")]
        return all((self.runs / name / "config.yaml").exists() for name in others)

    def _dense(self, run: Run) -> Path:
        """Return where the dense model is that the variants of a seed have in common."""
        path: Path = self.runs / run.parent.name / "dense.safetensors"
        return path

    def _has_dense(self, run: Run) -> bool:
        """Return whether the dense model is there, and was trained with the run's data set."""
        path = self._dense(run)
        stored = path.with_name("config.yaml")
        if not path.exists() or not stored.exists():
            return False
        with suppress(PruneError):
            return (*_described(str(stored.absolute())), run.seed) == self._key(run.parent)
        return False

    def _refusal(self, run: Run) -> str | None:
        """Return why a run can never start; None if it can, or may as soon as others did."""
        if not run.variant or self._has_dense(run):
            return None
        parent, dataset = run.parent, self._key(run)[KEYS.index("dataset")]
        if parent.name in self.runner.failed:
            reason = "failed"
        elif self._is_done(parent):
            reason = "has its line already: give another folder to --results, or its own to --runs"
        elif parent not in self._runs():
            reason = "is left out by --only: run it first"
        else:
            return None
        return (
            f"no dense model of {dataset} in {self._dense(run).parent}, and {parent.name} {reason}"
        )

    def _command(self, run: Run) -> list[str]:
        options, dense = self.options, self._dense(run)
        given = run.options(options.preset, options.jpeg, options.overlay)
        command = [*COMMAND, "run", *given, "--seed", str(run.seed)]
        command += ["--output", _shown(self.runs / run.name), "--resume"]
        command += ["--results", _shown(self._results(run.experiment))]
        if options.frames and run.experiment == AUTOENCODER:
            command += ["--data.init_args.root", _shown(options.frames)]
        if run.variant:
            command += _from(dense)
        return command


def _shown(path: Path) -> str:
    """Return a path relative to the project, where it is inside."""
    return shown(path.absolute(), ROOT)


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return 1 if a run failed."""
    given = sys.argv[1:] if args is None else args
    if "--next" in given:
        return run_queue.main([arg for arg in given if arg != "--next"])
    queue = "With --next the runs of scripts/queue.yaml are made: see --next --help."
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], epilog=queue)
    parser.add_argument("--preset", default="cpu", choices=PRESETS)
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="more YAML files")
    jpeg = "take CIFAR-10 from a folder of images, data/cifar10-jpeg"
    parser.add_argument("--jpeg", action="store_true", help=jpeg)
    frames = "folder of the autoencoder's frames, if not data/carla"
    parser.add_argument("--frames", type=Path, help=frames)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the headline runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    minutes = "time budget; the runs take up to 20 seconds more to end"
    parser.add_argument("--minutes", type=float, default=1e6, help=minutes)
    parser.add_argument("--only", default="*", help="pattern of runs, as vgg16_cifar10/*-0")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce")
    results = parser.add_mutually_exclusive_group()
    results.add_argument("--results", type=Path, help="folder of the lines; default: in --runs")
    record = f"add the lines to those that are committed, in {_shown(RECORDED)}"
    results.add_argument("--record", action="store_true", help=record)
    return int(Reproduction(parser.parse_args(args)).go() > 0)


if __name__ == "__main__":
    sys.exit(main())

"""`branchprune search`: trials from one dense model, each a run, and the best of them."""

from __future__ import annotations

import math
import shlex
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt
from rich.console import Console

from branchprune.errors import PruneError
from branchprune.experiments.files import read_object, refusals_named
from branchprune.experiments.jobs import Job, JobRunner, shown
from branchprune.experiments.locks import locked
from branchprune.experiments.parsed import told
from branchprune.experiments.run.config import parse, stored_text
from branchprune.experiments.run.configuration_digest import changed_settings, flat, settings_of
from branchprune.experiments.run.settings import MetricConfig
from branchprune.experiments.search import config as search_config
from branchprune.experiments.search.config import Value
from branchprune.experiments.search.progress import logged, scores, train_macs
from branchprune.experiments.search.results import Searched, Trial, best
from branchprune.experiments.search.study import Study

COMMAND = [sys.executable, "-m", "branchprune"]
HOPELESS = 3
"""Trials that fail, and no other ends, after which no more begin."""
ERRORS = (1, 2)
"""Exit statuses of a run that has failed; others are those of one that was broken off."""


def make_parser() -> ArgumentParser:
    """Return the parser of what `branchprune search` has beside the options of a run."""
    parser = ArgumentParser(
        prog="branchprune search",
        usage="branchprune search CONFIG.yaml [CONFIG.yaml ...] [--option value ...]",
        exit_on_error=False,
        allow_abbrev=False,
        description="Search settings of a run by Optuna, as the section `search` of its "
        "configuration says. All options of `branchprune run` are those of its trials.",
    )
    add = parser.add_argument
    add("--output", type=Path, help="Folder to write; default: runs/search/NAME")
    add("--jobs", type=PositiveInt, default=1, help="Trials side by side")
    add("--threads", type=PositiveInt, default=1, help="Threads of each")
    add("--minutes", type=PositiveFloat, default=1e6, help="Time budget")
    return parser


def search(args: Sequence[str], console: Console) -> tuple[Searched, Path]:
    """Make the trials that are missing, and return what all have found, and their folder.

    Args:
        args: Arguments of `branchprune search`.
        console: Where to show progress.

    Raises:
        PruneError: An option or the configuration is wrong, of whatever trial; the folder cannot
            be written, or is of another search; the dense training failed.
    """
    try:
        options, given = make_parser().parse_known_args([*args])
    except ArgumentError as error:
        raise PruneError(told(str(error), make_parser(), args)) from error
    searching = _Searching(options, given, console)
    with refusals_named(), locked(searching.output):
        return searching.go(), searching.output


class _Searching:
    """A search that is carried out."""

    study: Study
    output: Path

    def __init__(self, options: Namespace, given: list[str], console: Console) -> None:
        self.options, self.given, self.cwd = options, given, Path.cwd()
        self.say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        text = stored_text([*given, "--output", "none"])
        self.search, section = search_config.read(given)
        self.base = yaml.safe_load(text)
        self.settings = settings_of(text) | {
            f"search.{key}": value for key, value in section.items() if key != "trials"
        }
        self.metric = MetricConfig(**self.base["metric"])
        self.output = options.output or Path("runs/search") / self.base["name"]
        self.dense = self.output / "dense"
        self.logged: dict[int, list[tuple[str, int, int]]] = {}
        self._check_space()

    def _check_space(self) -> None:
        """Raise for what a run would not take, of each end and each choice."""
        for settings in self.search.examples():
            try:
                parse([*self._arguments(settings), "--output", "none"])
            except PruneError as error:
                tried = shlex.join(search_config.options(settings))
                meant = self._meant(str(error))
                raise PruneError(f"search.space, as {tried}: {error}{meant}") from error

    def _meant(self, error: str) -> str:
        """Return the nearest keys to those that an error names, if it does not say them."""
        known = [*flat(self.base)]
        near = [
            f"; {key} is perhaps {match}"
            for key in self.search.space
            if key not in known and key.rpartition(".")[2] in error and "nearest" not in error
            for match in get_close_matches(key, known, 1)
        ]
        return "".join(near)

    def go(self) -> Searched:
        """Make what is missing; return what was found."""
        self.output.mkdir(parents=True, exist_ok=True)
        base, options = self.base, self.options
        path = self.output / "study.db"
        self.study = Study(path, self.search, self.metric.mode, base["seed"])
        try:
            with self.study.writing():
                self._check_same()
                runner = JobRunner(
                    self.output, options.jobs, options.threads, options.minutes, self.cwd, self.say
                )
                dense = Job("dense", self._dense_command, done=self._needs_no_dense)
                left = [*map(self._job, range(self.search.trials))]
                left = [job for job in runner.run([dense, *left]) if job != dense]
                if "dense" in runner.failed:
                    raise PruneError(f"the dense training failed: {self._last_line('dense')}")
                done = self.search.trials - len(left)
                self.say(f"{done} trials have ended, {len(left)} are missing")
                return self._searched()
        finally:
            self.study.close()

    def _check_same(self) -> None:
        """Raise if the folder holds a search with other settings; it may have more trials."""
        before = self.study.same(self.settings)
        for key in changed_settings(before, self.settings):
            raise PruneError(
                f"output folder {self.output} is a search with other settings: {key} was "
                f"{before.get(key)!r} and is {self.settings.get(key)!r}; give another --output"
            )

    def _job(self, number: int) -> Job:
        return Job(
            f"trials/{number:03}",
            command=partial(self._command, number),
            done=partial(self._is_done, number),
            ready=partial(self._is_ready, number),
            stop=partial(self._is_to_stop, number),
            ended=partial(self._ended, number),
        )

    def _folder(self, number: int) -> Path:
        return self.output / "trials" / f"{number:03}"

    def _dense_command(self) -> list[str]:
        return [*COMMAND, "dense", *self.given, "--output", self._shown(self.dense), "--resume"]

    def _arguments(self, settings: Mapping[str, Value]) -> list[str]:
        """Return the arguments of a run with some settings, but where it is written."""
        return [
            *(*self.given, *search_config.options(settings), "--dense.epochs", "0"),
            *("--dense.checkpoint", self._shown(self.dense / "dense.safetensors")),
        ]

    def _command(self, number: int) -> list[str]:
        return [
            *(*COMMAND, "run", *self._arguments(self.study.settings(number))),
            *("--output", self._shown(self._folder(number))),
            *("--results", self._shown(self.output / "trials.jsonl"), "--resume"),
        ]

    def _shown(self, path: Path) -> str:
        return shown(path, self.cwd)

    def _last_line(self, name: str) -> str:
        """Return how the log of a job ends."""
        log = self.output / f"{name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.strip()] or [""]
        return said[-1].removeprefix("branchprune: error: ")

    def _trained(self) -> dict[str, Any] | None:
        """Return what the dense training left, once it is over."""
        found = read_object(self.dense / "dense" / "finished.json")
        return found if (self.dense / "dense.safetensors").exists() else None

    def _needs_no_dense(self) -> bool:
        return self._trained() is not None or all(map(self._is_done, range(self.search.trials)))

    def _is_ready(self, number: int) -> bool:
        """Return whether a trial can begin; a killed search may have left it running, alone."""
        states = [self.study.state(each) for each in range(self.study.asked)]
        hopeless = states.count("FAIL") >= HOPELESS and not {"COMPLETE", "PRUNED"} & {*states}
        if hopeless or self._trained() is None:
            return False
        try:
            with locked(self._folder(number)):
                return True
        except PruneError:
            return False

    def _is_done(self, number: int) -> bool:
        """Return whether a trial is over; take up what it has found if it has just ended."""
        state = self.study.state(number)
        result = read_object(self._folder(number) / "result.json") if state == "RUNNING" else None
        if result is None:
            return state not in (None, "RUNNING")
        cost, score = result["cost"], result["scores"]["small"]["val"]
        self.study.report(number, self._scores(number))
        if not math.isfinite(score):
            self._give_up(number, "FAIL")
            return True
        left = {key: cost["small"][key] / cost["dense"][key] for key in ("macs", "params")}
        spent = sum(stage["train_macs"] for stage in result["stages"].values())
        self.study.finish(number, score, **left, train_macs=spent)
        return True

    def _is_to_stop(self, number: int) -> bool:
        now = logged(self._folder(number))
        before, self.logged[number] = self.logged.get(number), now
        if now == before or not self.study.report(number, self._scores(number)):
            return False
        self._give_up(number, "PRUNED")
        return True

    def _ended(self, number: int, status: int) -> None:
        if status in ERRORS:
            self._give_up(number, "FAIL")

    def _scores(self, number: int) -> list[float]:
        return scores(self._folder(number), self.metric.val)

    def _give_up(self, number: int, state: Literal["PRUNED", "FAIL"]) -> None:
        self.study.give_up(number, state, train_macs(self._folder(number)))

    def _searched(self) -> Searched:
        trials = [*map(self._trial, range(min(self.study.asked, self.search.trials)))]
        found, test, command = best(trials, self.metric), None, None
        if found is not None:
            result = read_object(self._folder(found.number) / "result.json") or {}
            test = result.get("scores", {}).get("small", {}).get("test")
            again = self._arguments(found.settings)
            command = shlex.join(
                ["branchprune", "run", *again, "--output", self._shown(self.output / "best")]
            )
        dense = self._trained() or {"record": None}
        most, wanted = self.search.max_macs, self.search.trials
        name = str(self.base["name"])
        return Searched(name, self.metric, wanted, most, trials, dense, test, command)

    def _trial(self, number: int) -> Trial:
        kept = self.study.kept(number)
        return Trial(
            number,
            self._state(number, kept),
            self.study.settings(number),
            int(kept["epochs"]),
            kept.get("train_macs", train_macs(self._folder(number))),
            *(kept.get(key) for key in ("score", "macs", "params")),
        )

    def _state(self, number: int, kept: Mapping[str, float]) -> Any:
        most, names = self.search.max_macs, {"PRUNED": "stopped", "FAIL": "failed"}
        if "score" not in kept:
            return names.get(str(self.study.state(number)), "broken off")
        return "too large" if most is not None and kept["macs"] > most else "done"

"""The trials of a search, in a file of Optuna's that survives a kill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from branchprune.errors import Failed, PruneError, first_line, optional
from branchprune.experiments.search.config import Range, SearchConfig, Value

State = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING"]


class Study:
    """Suggests the settings of trials, and keeps what they came to.

    A trial that was broken off is still running when the file is opened again, so that it goes on.
    What the sampler draws for a trial follows from the seed, its number and the trials before.

    Args:
        path: The file, made if it does not exist.
        search: What is searched.
        mode: Whether the metric is to be large or small.
        seed: Seed of what is drawn.

    Raises:
        PruneError: The file is no study.
    """

    def __init__(self, path: Path, search: SearchConfig, mode: str, seed: int) -> None:
        self.path, self.search, self.seed = path, search, seed
        self.optuna = optional("optuna", "search")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        try:
            self.storage = self.optuna.storages.RDBStorage(f"sqlite:///{path}")
            self.study = self.optuna.create_study(
                storage=self.storage,
                study_name="search",
                direction="maximize" if mode == "max" else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        except Exception as error:  # of the data base behind it, which has many
            raise PruneError(f"{path} is no study: {first_line(error)}") from error

    def _pruner(self) -> Any:
        search, pruners = self.search, self.optuna.pruners
        if search.pruner == "median":
            return pruners.MedianPruner(search.startup, n_warmup_steps=search.warmup)
        if search.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=search.warmup)
        return pruners.NopPruner()

    def close(self) -> None:
        """Close the file."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Name the file where it cannot be written in a `with` block.

        Raises:
            PruneError: It cannot be written.
        """
        try:
            yield
        except self.optuna.exceptions.StorageInternalError as error:
            reason = first_line(error.__cause__ or error)
            raise Failed(f"{self.path} cannot be written: {reason}") from error

    def same(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings that the search has, which are these if it has just begun."""
        if "settings" not in self.study.user_attrs:
            self.study.set_user_attr("settings", dict(settings))
        found: Mapping[str, Any] = self.study.user_attrs["settings"]
        return found

    @property
    def asked(self) -> int:
        """Number of trials that have settings."""
        return len(self.study.get_trials(deepcopy=False))

    def state(self, number: int) -> State | None:
        """Return the state of a trial; None: it has no settings yet."""
        return self._found(number).state.name if number < self.asked else None

    def _found(self, number: int) -> Any:
        return self.study.get_trials(deepcopy=False)[number]

    def _trial(self, number: int) -> Any:
        return self.optuna.trial.Trial(self.study, self._found(number)._trial_id)

    def settings(self, number: int) -> dict[str, Value]:
        """Return the settings of a trial, suggested now if it has none."""
        if self.state(number) not in (None, "RUNNING"):
            return dict(self._found(number).params)
        trials = self.search.startup
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=trials)
        trial = self.study.ask() if number == self.asked else self._trial(number)
        return {key: self._suggested(trial, key) for key in self.search.space}

    def _suggested(self, trial: Any, key: str) -> Value:
        values = self.search.space[key]
        if not isinstance(values, Range):
            choice: Value = trial.suggest_categorical(key, values.examples)
            return choice
        suggest = trial.suggest_int if values.whole else trial.suggest_float
        number: Value = suggest(key, values.low, values.high, log=values.log)
        return number

    def report(self, number: int, scores: Sequence[float]) -> bool:
        """Take up the scores after each epoch so far; return whether to stop the trial."""
        trial, known = self._trial(number), self._found(number).last_step or 0
        for epoch, score in enumerate(scores[known:], known + 1):
            trial.report(score, epoch)
            if trial.should_prune():
                return True
        return False

    def finish(self, number: int, score: float, macs: float, **found: float) -> None:
        """Note that a trial has ended.

        Args:
            number: Its number.
            score: Its validation score.
            macs: What is left of the multiply-adds, as a part.
            found: What else to keep.
        """
        trial, most = self._trial(number), self.search.max_macs
        for key, value in {"macs": macs, **found}.items():
            trial.set_user_attr(key, value)
        if most is not None and not trial.constraints:
            trial.set_constraint("macs", macs - most)
        self.study.tell(number, score)

    def give_up(self, number: int, state: Literal["PRUNED", "FAIL"], train_macs: int) -> None:
        """Note that a trial was stopped or has failed, and the multiply-adds that it took."""
        self._trial(number).set_user_attr("train_macs", train_macs)
        self.study.tell(number, state=self.optuna.trial.TrialState[state])

    def kept(self, number: int) -> dict[str, float]:
        """Return what is kept of a trial: `epochs`, and as it ended `score`, `macs` and others."""
        found = self._found(number)
        score = {"score": found.value} if found.state.name == "COMPLETE" else {}
        return {"epochs": found.last_step or 0, **score, **found.user_attrs}

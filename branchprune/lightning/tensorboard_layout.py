"""How TensorBoard shows a blending: charts of several curves, the branch as a run, marks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

BRANCH, STEPS = "branch_alone", "steps_of_alpha"


@dataclass
class _Writers:
    """A logger's own writer of events, and those of the runs beside it."""

    own: Any
    branch: Any
    steps: Any


class TensorBoardCurves:
    """Draws a blending with each TensorBoard logger of a trainer.

    TensorBoard gives every run a colour. So the branch alone is a run of its own, `branch_alone` in
    the folder of the logger, with the names that the blended model's values have: they come to
    stand in one chart, in two colours that are the same in all of them. So do the marks where α
    steps, lines of a run `steps_of_alpha` from one of these curves to the other. α itself is
    written when an epoch begins, too: its curves are stairs.
    """

    def __init__(self) -> None:
        self.writers: list[_Writers] | None = None
        self.alphas: Mapping[str, float] = {}
        self.has_charts = False

    def begin_epoch(self, trainer: Trainer, alphas: Mapping[str, float]) -> None:
        """Write α; mark where it has changed.

        Args:
            trainer: The trainer, at the beginning of an epoch.
            alphas: α of each group in this epoch.
        """
        step = _step(trainer)
        for writers in self._writers(trainer):
            for name, alpha in alphas.items():
                writers.own.add_scalar(f"alpha/{name}", alpha, step)
            for name, ends in _measured(trainer).items() if self.alphas else ():
                if self.alphas != alphas:
                    for i, value in enumerate((*ends, nan)):  # which ends the line
                        writers.steps.add_scalar(name, value, step - 1 + i)
        self.alphas = dict(alphas)

    def validated(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Write what was logged of the branch alone.

        Args:
            trainer: The trainer, in a validation.
            values: By the names that those of the blended model have.
        """
        if trainer.state.fn != "fit":
            return
        self._lay_out(values)
        for writers in self._writers(trainer):
            for name, value in values.items():
                writers.branch.add_scalar(name, value, _step(trainer))

    def end(self) -> None:
        """Close the runs beside those of the loggers."""
        self._lay_out(())
        for writers in self.writers or ():
            writers.branch.close()
            writers.steps.close()
        self.writers, self.alphas, self.has_charts = None, {}, False

    def _writers(self, trainer: Trainer) -> list[_Writers]:
        """Return the writers, which are opened the first time."""
        if self.writers is None:
            loggers = trainer.loggers if trainer.is_global_zero else ()
            self.writers = [_open(logger, trainer) for logger in loggers if _is_tensorboard(logger)]
        return self.writers

    def _lay_out(self, names: Iterable[str]) -> None:
        """Lay out the charts, once: TensorBoard reads no second layout."""
        if not self.has_charts:
            for writers in self.writers or ():
                writers.own.add_custom_scalars(charts(names))
            self.has_charts = True


def charts(names: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return TensorBoard's custom scalar charts: each shows several curves in one.

    Args:
        names: What is measured of the blended model and of the branch alone.
    """
    measured: dict[str, dict[str, list[Any]]] = {}
    for name in sorted(names, key=lambda name: "loss" in name):
        title = f"{name}: blended, and branch alone"
        measured.setdefault(name.partition("/")[0], {})[title] = _chart(f"{re.escape(name)}$")
    return {
        **measured,
        "alpha": {"all groups": _chart("alpha/")},
        "share": {"of the branch, by layer": _chart("share/")},
    }


def _chart(pattern: str) -> list[Any]:
    return ["Multiline", [pattern]]


def _is_tensorboard(logger: Any) -> bool:
    return hasattr(getattr(logger, "experiment", None), "add_custom_scalars")


def _open(logger: Any, trainer: Trainer) -> _Writers:
    own, folder = logger.experiment, Path(logger.log_dir)
    purge = _step(trainer) if trainer.current_epoch else None  # what a kill has left there
    branch, steps = (type(own)(str(folder / name), purge_step=purge) for name in (BRANCH, STEPS))
    return _Writers(own, branch, steps)


def _step(trainer: Trainer) -> int:
    """Return the step that Lightning logs at; an epoch ends one before the next begins."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _measured(trainer: Trainer) -> dict[str, tuple[float, float]]:
    """Return the last values of the branch alone and of the blended model, by their name."""
    values = trainer.callback_metrics
    return {
        name: (float(values[f"{name}_branch"]), float(values[name]))
        for name in values
        if f"{name}_branch" in values
    }

"""The stages of a run: each is a training in a folder of its own, which continues after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger, Logger
from rich.console import Console

from branchprune.errors import Failed, PruneError
from branchprune.experiments.files import read_object, sealed, write_whole
from branchprune.experiments.metrics_csv import earlier_rows, table_text
from branchprune.experiments.run.callbacks.epoch_checkpoint import EpochCheckpoint, find_checkpoint
from branchprune.experiments.run.callbacks.progress import StageProgress
from branchprune.experiments.run.callbacks.reconstructions import Reconstructions
from branchprune.experiments.run.callbacks.training_cost import TrainingCost
from branchprune.experiments.run.events_logger import EventsLogger
from branchprune.experiments.run.one_line import said
from branchprune.experiments.run.settings import RunSettings
from branchprune.training.batch_keys import Keys

Split = Literal["val", "test"]
DRY = 2
"""Batches of an epoch, and of those on which a model is judged, in a dry run."""


@dataclass
class Stages:
    """Trains and judges the models of a run.

    Attributes:
        config: The configuration of the run.
        console: Where to show progress.
        records: What each stage cost, by its name: seconds, epochs, multiply-adds of the training
            (`train_macs`), share of the time that waited for data (`loader_share`).
        keys: What the batches are like.
        done: Stages of a run that continues, in which nothing is left to do.
        told: Whether it has been said where the run goes on, or that it begins.
        rehearsed: Whether a run is tried in small: every model is judged on one batch, and any
            error is told in one line.
    """

    config: RunSettings
    console: Console
    records: dict[str, dict[str, float]] = field(default_factory=dict)
    keys: Keys = field(default_factory=Keys)
    done: list[str] = field(default_factory=list)
    told: bool = False
    rehearsed: bool = False

    def fit(self, stage: str, task: LightningModule, epochs: int, *callbacks: Callback) -> Trainer:
        """Train a task, from the stage's last checkpoint if there is one.

        Args:
            stage: Name of the stage, and of its folder.
            task: What to train.
            epochs: The most epochs it can take.
            *callbacks: What belongs to this stage alone.

        Raises:
            PruneError: The loss became NaN, or something cannot be written; the last good
                checkpoint is named.
        """
        folder, cost = self.config.output / stage, TrainingCost()
        checkpoint, note = find_checkpoint(folder)
        if note:
            self.say(note)
        place = None if checkpoint is None else _place(checkpoint)
        epoch = "the start" if place is None else f"epoch {place[0] + 1} of {epochs}"
        self.tell(f"{stage} from {epoch}", place is not None)
        saved = EpochCheckpoint(folder)
        progress = StageProgress(stage, self.config.metric.val, self.console)
        batches = DRY if self.config.fast else None
        trainer = self._trainer(
            max_epochs=epochs,
            logger=self._loggers(stage, place),
            callbacks=[*callbacks, cost, Reconstructions(), progress, saved],
            limit_train_batches=batches,
            limit_val_batches=batches,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        seed_everything(self.config.seed, workers=True, verbose=False)
        try:
            path = None if checkpoint is None else str(checkpoint)
            trainer.fit(task, self.config.data, ckpt_path=path, weights_only=True)
        except Exception as error:
            if self.rehearsed:
                raise PruneError(f"{stage} stage: {said(error)}") from error
            if not isinstance(error, PruneError | OSError):
                raise
            kind = PruneError if type(error) is PruneError else Failed
            raise kind(f"{stage} stage: {error}; {self._kept(folder)}") from error
        self.records[stage] = {
            "seconds": round(saved.spent(), 1),
            "epochs": trainer.current_epoch,
            "train_macs": cost.macs,
            "loader_share": round(cost.waited / cost.seconds, 4) if cost.seconds else 0.0,
        }
        return trainer

    def _kept(self, folder: Path) -> str:
        """Say from which file a run can go on."""
        last, dense = folder / "last.ckpt", self.config.output / "dense.safetensors"
        good = next((path for path in (last, dense) if path.exists()), None)
        where = f"the last good checkpoint is {good}" if good else "no checkpoint was written"
        return f"{where} (--resume continues)"

    def tell(self, left: str, begun: bool = False) -> None:
        """Say, once, where a run goes on.

        Args:
            left: What comes next.
            begun: Whether a part of it is done.
        """
        if not self.told and (self.done or begun):
            verb = "is" if len(self.done) == 1 else "are"
            done = f"{', '.join(self.done)} {verb} done; " if self.done else ""
            self.say(f"goes on: {done}{left}")
        self.told = True

    def say(self, text: str) -> None:
        """Print lines as they are."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _loggers(self, stage: str, place: tuple[int, int] | None) -> list[Logger]:
        """Return loggers of a stage, which go on from the epoch and step of a checkpoint.

        The logger of metrics.csv deletes it: until then and beyond, the rows of the earlier epochs
        are in metrics.csv.kept, which counts where a kill has left it.
        """
        output, purge = self.config.output, None
        table, kept = (output / stage / name for name in ("metrics.csv", "metrics.csv.kept"))
        rows: list[dict[str, str]] = []
        if place is not None:
            epoch, purge = place
            rows = earlier_rows(kept if kept.exists() else table, epoch)
        names = sorted({name for row in rows for name in row})
        if rows:
            write_whole(kept, table_text(rows, names))
        else:
            kept.unlink(missing_ok=True)
        csv_logger = CSVLogger(output, name="", version=stage)
        writer = csv_logger.experiment
        if rows:
            kept.replace(table)
            writer.metrics_keys = names
        return [csv_logger, EventsLogger(output, stage, purge, self.say)]

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        device: torch.device = self._trainer(logger=False).strategy.root_device
        return device

    def _trainer(self, **options: Any) -> Trainer:
        config = self.config
        return Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=config.precision,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    def epoch_macs(self, task: LightningModule) -> int:
        """Return the multiply-adds of an epoch of training a task; one step of it is taken."""
        cost = TrainingCost()
        trainer = self._trainer(
            max_steps=1,
            callbacks=[cost],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(task, self.config.data)
        return cost.macs * int(trainer.num_training_batches)

    def judge(
        self, task: LightningModule, batches: int | None = None, test: bool = True
    ) -> dict[Split, dict[str, float]]:
        """Return everything a task logs in validation ("val") and, if asked for, test ("test").

        Args:
            task: What to judge.
            batches: Number of batches; None: all, of a dry run two.
            test: Whether to look at the test set, too.

        Raises:
            PruneError: The metric of the run is not logged, or something is missing for a test.
        """
        metric, data = self.config.metric, self.config.data
        batches = 1 if self.rehearsed else batches or (DRY if self.config.fast else None)
        try:
            judge = self._trainer(
                logger=False, limit_val_batches=batches, limit_test_batches=batches
            )
            found: dict[Split, Any] = {"val": judge.validate(task, data, verbose=False)[0]}
            if test:
                found["test"] = judge.test(task, data, verbose=False)[0]
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise PruneError(f"task, data, accelerator or precision: {error}") from error
        for split, logged in found.items():
            name = getattr(metric, split)
            if name not in logged:
                known = ", ".join(sorted(logged))
                raise PruneError(f"metric (={name!r}) is not logged; the task logs {known}")
        return {
            split: {name: float(value) for name, value in logged.items()}
            for split, logged in found.items()
        }

    def score(self, task: LightningModule) -> float:
        """Return the metric of the run in validation."""
        return self.pick(self.judge(task, test=False))["val"]

    def pick(self, logged: Mapping[Split, Mapping[str, float]]) -> dict[str, float]:
        """Return the metric of the run out of what `judge` returned."""
        return {split: each[getattr(self.config.metric, split)] for split, each in logged.items()}

    def finish(self, stage: str, **found: Any) -> None:
        """Note that a stage has ended, and what was found."""
        path = self.config.output / stage / "finished.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"record": self.records.get(stage), **found}
        write_whole(path, json.dumps(sealed(record), indent=1))

    def finished(self, stage: str) -> dict[str, Any] | None:
        """Return what was found in a stage that has ended, None if it has not."""
        found = read_object(self.config.output / stage / "finished.json")
        if found is None:
            return None
        if found["record"]:
            self.records[stage] = found["record"]
            self.done.append(stage)
        return found


def _place(checkpoint: Path) -> tuple[int, int]:
    """Return the epoch and the step at which a checkpoint was written."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return state["epoch"], state["global_step"]

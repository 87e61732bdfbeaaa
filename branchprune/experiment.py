"""The main job: dense training, pruning, collapse, verification, measurements."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn

from branchprune import environment
from branchprune.artifact import save
from branchprune.branches import Init
from branchprune.checkpoints import load_weights
from branchprune.config import RunConfig
from branchprune.errors import PruneError
from branchprune.lightning import BranchPruning, StageProgress, Vitals
from branchprune.lightning.quiet import quiet_lightning
from branchprune.planning import Plan, plan
from branchprune.profiling import measure_latency, peak_memory
from branchprune.report import write_report
from branchprune.runfolder import check_folder, make_folder
from branchprune.schedules import Schedule
from branchprune.verification import TOLERANCE, own_dtype_error

Stage = Literal["dense", "prune"]


def run(config: RunConfig, command: str, console: Console) -> dict[str, Any]:
    """Carry out a run and write its folder.

    The folder holds config.yaml, dense.safetensors, small.safetensors, result.json, report.html
    and, for each of the stages dense and prune, metrics.csv, TensorBoard events and last.ckpt.

    Args:
        config: What to do.
        command: The command line, for the result.
        console: Where to show progress.

    Returns:
        What result.json holds.

    Raises:
        PruneError: Something in the configuration is wrong (nothing has been written), or the
            loss became NaN (the last good checkpoint is named).
    """
    return _Run(config, command, console).run()


@dataclass
class _Run:
    """The state of a run between its stages."""

    config: RunConfig
    command: str
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        quiet_lightning()
        with self.console.status("checking the configuration"):
            pruning = self._check()
        make_folder(self.config.output)
        (self.config.output / "config.yaml").write_text(self.config.text)
        seed_everything(self.config.seed, workers=True, verbose=False)
        dense = self._train_dense()
        save(dense, self.config.output / "dense.safetensors")
        pruned = self._prune(dense, pruning)
        with self.console.status("measuring the dense and the small model"):
            result = self._result(dense, pruned)
        path = self.config.output / "result.json"
        path.write_text(json.dumps(result, indent=1))
        write_report(self.config.output)
        return result

    def _check(self) -> BranchPruning:
        """Find every mistake that can be found before anything is written or trained."""
        config = self.config
        if config.dense.epochs < 1 and config.dense.checkpoint is None:
            raise PruneError(f"dense.epochs (={config.dense.epochs}) without a checkpoint")
        check_folder(config.output, config.overwrite)
        if config.dense.checkpoint is not None:
            load_weights(config.model, config.dense.checkpoint)
        config.data.setup("fit")
        example = self._images("train")[:1]
        pruning = self._pruning(example)
        planned = plan(config.model, example, **config.prune.plan_options())
        for name in pruning.schedule.order or ():
            planned.branches_within(name)
        logged = self._judge(config.task(config.model), batches=1)
        self._judge(config.prune_task(config.model), batches=1)
        if pruning.monitor not in {*logged, *(f"{name}_branch" for name in logged)}:
            raise PruneError(f"monitor (={pruning.monitor!r}) is not logged by the task")
        self.console.print(str(planned), highlight=False, soft_wrap=True, markup=False)
        return pruning

    def _pruning(self, example: Tensor) -> BranchPruning:
        config, fast = self.config.prune, self.config.fast
        schedule = config.schedule(self.config.metric.mode)
        if fast:
            schedule = Schedule(schedule.levels[-2:], 1, 1, schedule.order)
        init: Init = config.criterion()
        return BranchPruning(
            schedule,
            **config.plan_options(),
            init=init,
            example=example,
            monitor=config.monitor or f"{self.config.metric.val}_branch",
            learning_rate=config.learning_rate,
            recalibrate=config.recalibrate,
        )

    def _images(self, split: Literal["train", "test"]) -> Tensor:
        data = self.config.data
        data.setup("test" if split == "test" else "fit")
        loader = data.train_dataloader() if split == "train" else data.test_dataloader()
        batch = next(iter(loader))
        images = batch[0] if isinstance(batch, list | tuple) else batch
        assert isinstance(images, Tensor)
        return images

    def _trainer(self, stage: Stage, epochs: int, callbacks: list[Callback]) -> Trainer:
        config = self.config
        folder = config.output / stage
        return Trainer(
            max_epochs=epochs,
            accelerator=config.accelerator,
            devices=1,
            precision=config.precision,  # type: ignore[arg-type]
            logger=[
                CSVLogger(config.output, name="", version=stage),
                TensorBoardLogger(config.output, name="", version=stage),
            ],
            callbacks=[
                *callbacks,
                StageProgress(stage, config.metric.val, self.console),
                ModelCheckpoint(folder, filename="last", enable_version_counter=False),
            ],
            limit_train_batches=2 if config.fast else None,
            limit_val_batches=2 if config.fast else None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _fit(self, trainer: Trainer, task: LightningModule, stage: Stage) -> None:
        start = time.perf_counter()
        try:
            trainer.fit(task, self.config.data)
        except PruneError as error:
            last = self.config.output / stage / "last.ckpt"
            before = self.config.output / "dense.safetensors"
            good = last if last.exists() else before if before.exists() else None
            raise PruneError(
                f"{stage} stage: {error}; "
                + (
                    f"the last good checkpoint is {good}"
                    if good
                    else "no checkpoint was written yet"
                )
            ) from error
        self.seconds[stage] = time.perf_counter() - start

    def _judge(self, task: LightningModule, batches: int | None = None) -> dict[str, float]:
        """Return everything the task logs in validation and test, of some batches or all.

        Raises:
            PruneError: The metric of the run is not logged, or something is missing for a test.
        """
        metric, config = self.config.metric, self.config
        try:
            judge = Trainer(
                accelerator=config.accelerator,
                devices=1,
                precision=config.precision,  # type: ignore[arg-type]
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=batches,
                limit_test_batches=batches,
            )
            [val] = judge.validate(task, config.data, verbose=False)
            [test] = judge.test(task, config.data, verbose=False)
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise PruneError(f"task, data, accelerator or precision: {error}") from error
        for name, found in ((metric.val, val), (metric.test, test)):
            if name not in found:
                known = ", ".join(sorted(found))
                raise PruneError(f"metric (={name!r}) is not logged; the task logs {known}")
        return {name: float(value) for name, value in [*val.items(), *test.items()]}

    def _score(self, task: LightningModule) -> dict[str, float]:
        logged = self._judge(task)
        return {"val": logged[self.config.metric.val], "test": logged[self.config.metric.test]}

    def _train_dense(self) -> nn.Module:
        epochs = 1 if self.config.fast else self.config.dense.epochs
        task = self.config.task(self.config.model)
        self.seconds["dense"] = 0.0
        if self.config.dense.epochs:
            self._fit(self._trainer("dense", epochs, [Vitals()]), task, "dense")
        self.scores["dense"] = self._score(task)
        return self.config.model.cpu()

    def _prune(self, dense: nn.Module, pruning: BranchPruning) -> BranchPruning:
        task = self.config.prune_task(dense)
        trainer = self._trainer("prune", pruning.schedule.max_epochs, [pruning])
        self._fit(trainer, task, "prune")
        branch = float(trainer.callback_metrics[f"{self.config.metric.val}_branch"])
        self.scores["blended_at_zero"] = {"val": branch}
        assert pruning.small is not None
        self.scores["small"] = self._score(task)
        self._log_hyperparameters(trainer)
        save(pruning.small, self.config.output / "small.safetensors")
        self.epochs = trainer.current_epoch
        return pruning

    def _log_hyperparameters(self, trainer: Trainer) -> None:
        """Put the run into TensorBoard's table of hyperparameters, with its final scores."""
        config = self.config
        settings = asdict(config.prune) | {"name": config.name, "seed": config.seed}
        scores = {f"hp_metric/{name}_val": score["val"] for name, score in self.scores.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, scores)
                logger.save()

    def _result(self, dense: nn.Module, pruned: BranchPruning) -> dict[str, Any]:
        assert pruned.plan is not None and pruned.blended is not None and pruned.small is not None
        config, metric = self.config, self.config.metric
        batch = self._images("test")
        return {
            "experiment": config.name,
            "command": self.command,
            "seed": config.seed,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": environment.hardware(),
            "commit": environment.commit(),
            "versions": environment.versions(),
            "configuration": config.text,
            "recalibrate": config.prune.recalibrate,
            "metric": {
                "column": metric.val,
                "label": metric.label,
                "mode": metric.mode,
                "format": metric.format,
            },
            "scores": self.scores,
            "cost": {
                "dense": self._cost("dense", dense, pruned.plan, batch),
                "small": self._cost("small", pruned.small.cpu(), pruned.plan, batch),
            },
            "collapse": {
                "relative_error": pruned.collapse_error,
                "tolerance": TOLERANCE,
                "relative_error_own_dtype": own_dtype_error(
                    pruned.blended.cpu(), pruned.small.cpu()
                ),
            },
            "plan": pruned.plan.as_dict(),
            "epochs": {"dense": config.dense.epochs, "prune": self.epochs},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def _cost(self, which: str, model: nn.Module, plan: Plan, batch: Tensor) -> dict[str, Any]:
        """Measure a model on the run's device: latency, memory, size of its file."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, batch = model.to(device), batch.to(device)
        cost = asdict(plan.before if which == "dense" else plan.after)
        return cost | {
            "file_bytes": (self.config.output / f"{which}.safetensors").stat().st_size,
            "latency": asdict(measure_latency(model, batch)),
            "peak_memory_bytes": peak_memory(model, batch),
        }

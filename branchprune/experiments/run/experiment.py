"""The main job: dense training, pruning, collapse, verification, measurements."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pytorch_lightning import Callback, LightningModule, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn

from branchprune.artifacts.card import card
from branchprune.artifacts.saved_file import read_header
from branchprune.artifacts.serialization import write_model
from branchprune.errors import optional
from branchprune.experiments import environment
from branchprune.experiments.files import read_object, sealed, unwritable_named, write_whole
from branchprune.experiments.run.callbacks.early_weights import EARLY, EarlyWeights, early_file
from branchprune.experiments.run.callbacks.quiet import quiet_libraries
from branchprune.experiments.run.checks import check, first_batch
from branchprune.experiments.run.config import RunConfig
from branchprune.experiments.run.exporting import export_models
from branchprune.experiments.run.folder import check_folder, make_folder
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.model_facts import dense_facts, small_facts
from branchprune.experiments.run.one_line import told_in_one_line
from branchprune.experiments.run.pipeline import Pruning
from branchprune.experiments.run.rehearsal import rehearsal
from branchprune.experiments.run.result import make_result
from branchprune.experiments.run.results_file import add_line
from branchprune.experiments.run.shrinking import Pruned
from branchprune.experiments.run.stages import Stages
from branchprune.graph.inputs import copied
from branchprune.lightning import LossGuard


def run(config: RunConfig, command: str, console: Console) -> dict[str, Any]:
    """Carry out a run and write its folder, or finish one that was broken off.

    The folder holds config.yaml, dense.safetensors, small.safetensors and its card small.md,
    result.json and, for each stage of training, metrics.csv, TensorBoard events and last.ckpt. A
    line is added to the file of results.

    Args:
        config: What to do.
        command: The command line, for the result.
        console: Where to show progress.

    Returns:
        What result.json holds.

    Raises:
        PruneError: Something in the configuration is wrong (nothing has been written), or the
            loss became NaN (the last good checkpoint is named), or the disk is full.
    """
    run = _Run(config, command, console, Stages(config, console), environment.commit())
    with unwritable_named(config.output):
        return run.run()


def train_dense(config: RunConfig, console: Console) -> dict[str, float]:
    """Carry out the dense training of a run alone, or finish one that was broken off.

    The folder holds config.yaml, dense.safetensors, early.safetensors for those who rewind to it,
    and the stage `dense`.

    Args:
        config: What to do.
        console: Where to show progress.

    Returns:
        The scores of the dense model: "val" and "test".

    Raises:
        PruneError: See `run`.
    """
    run = _Run(config, "", console, Stages(config, console), environment.commit())
    with unwritable_named(config.output):
        return run.train_dense()


@dataclass
class _Run:
    """The state of a run between its stages."""

    config: RunConfig
    command: str
    console: Console
    stages: Stages
    commit: str | None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    tested: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        self._check_folder("run")
        result = read_object(self.config.output / "result.json") if self.config.resume else None
        if result is None:
            result = self._carry_out()
        else:
            self.stages.tell("all is done, and shown again", begun=True)
        if not self.config.fast:
            add_line(self.config.results_file, result)
        return result

    def train_dense(self) -> dict[str, float]:
        self._check_folder("dense")
        self._begin()
        self._train_dense(alone=True)
        return self.scores["dense"]

    def _check_folder(self, command: str) -> None:
        quiet_libraries()
        optional("tensorboard", "a run")  # for Lightning, which would ask for it after the checks
        resumed = self.config.text if self.config.resume else None
        check_folder(self.config.output, self.config.overwrite, resumed, command)

    def _begin(self) -> Pruning:
        """Check the configuration and make the folder; return how to prune."""
        with self.console.status("checking the configuration"):
            method, planned = check(self.config, self.stages)
            begun = self.config.resume and self.config.output.exists()
            if not (self.config.fast or begun):
                self._rehearse(method.example)
        depth = self.config.prune.depth
        pending = depth.pending if depth is not None else ""
        told = "\n".join(filter(None, [str(planned), pending]))
        self.console.print(told, highlight=False, soft_wrap=True, markup=False)
        make_folder(self.config.output, self.config.resume)
        write_whole(self.config.output / "config.yaml", self.config.text)
        seed_everything(self.config.seed, workers=True, verbose=False)
        return method

    def _carry_out(self) -> dict[str, Any]:
        """Train, prune and measure, or go on with that; write and return the result."""
        result = self._carry_out_with(self._begin())
        write_whole(self.config.output / "result.json", json.dumps(sealed(result), indent=1))
        return result

    def _rehearse(self, example: Tensor) -> None:
        """Carry out the run in small, in a folder of its own, which finds what would fail late."""
        quiet = Console(quiet=True)
        with told_in_one_line("a run of two batches"), rehearsal(self.config) as small:
            stages = Stages(small, quiet, keys=self.stages.keys, rehearsed=True)
            run = _Run(small, self.command, quiet, stages, self.commit)
            run._carry_out_with(Pruning(small, example))

    def _carry_out_with(self, method: Pruning) -> dict[str, Any]:
        """Train, prune and measure; return the result."""
        dense = self._train_dense()
        pruned = self._prune(dense, method)
        self.stages.tell("no training is left")
        models = {"dense": copied(dense), "small": copied(pruned.small)}  # not compiled
        exported = export_models(self.config, self.stages, models, method.example)
        with self.console.status("measuring the dense and the small model"):
            result = make_result(
                self.config,
                self.command,
                self.commit,
                self.stages.records,
                self.scores,
                self.tested,
                dense,
                pruned,
                self.stages.keys.input_of(first_batch(self.config.data, "test")),
            )
        return result if exported is None else result | {"export": exported}

    def _train_dense(self, alone: bool = False) -> nn.Module:
        config, path = self.config, self.config.output / "dense.safetensors"
        dense = config.model
        found = self.stages.finished("dense")
        if found is not None:
            load_weights(dense, path)
            self.scores["dense"] = found["scores"]
            if "test" in found:  # older folders hold the scores alone
                self.tested["dense"] = found["test"]
            return dense
        task = config.task(dense)
        if config.compile:
            dense.compile()
        if config.dense.epochs:
            epochs = 1 if config.fast else config.dense.epochs
            cut, kept = config.prune.cut, list[Callback]()
            if alone or (cut is not None and cut.rewind == EARLY):
                kept.append(EarlyWeights(dense, epochs, early_file(config)))
            self.stages.fit("dense", task, epochs, LossGuard(), *kept)
        self._judge("dense", task)
        dense.cpu()
        write_model(dense, path, dense_facts(config, self.scores["dense"]))
        self.stages.finish("dense", scores=self.scores["dense"], test=self.tested["dense"])
        return dense

    def _judge(self, name: str, task: LightningModule) -> None:
        """Note the scores of a model, and everything that its task logs in the test."""
        logged = self.stages.judge(task)
        self.scores[name], self.tested[name] = self.stages.pick(logged), logged["test"]

    def _prune(self, dense: nn.Module, method: Pruning) -> Pruned:
        pruned = method.prune(dense, self.stages, self.scores["dense"]["val"])
        self.scores |= {name: {"val": value} for name, value in pruned.scores.items()}
        self._judge("small", self.config.prune_task(pruned.small))
        self._log_hyperparameters(pruned.loggers)
        small = self.config.output / "small.safetensors"
        write_model(pruned.small.cpu(), small, small_facts(self.config, self.scores, pruned))
        write_whole(small.with_suffix(".md"), card(read_header(small), small.name))
        return pruned

    def _log_hyperparameters(self, loggers: list[Any]) -> None:
        """Put the run into TensorBoard's table of hyperparameters, with its final scores."""
        config = self.config
        settings = config.prune.hyperparameters() | {"name": config.name, "seed": config.seed}
        scores = {f"hp_metric/{name}_val": score["val"] for name, score in self.scores.items()}
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, scores)
                logger.save()

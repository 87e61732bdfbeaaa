"""A model that learns from the dense one: the task that holds both, and its training."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule
from torch import nn

from branchprune.artifacts.serialization import save
from branchprune.errors import PruneError
from branchprune.experiments.run.load_weights import load_weights
from branchprune.experiments.run.settings import TaskFactory
from branchprune.experiments.run.stages import Stages
from branchprune.graph.inputs import copied
from branchprune.lightning import LossGuard


def student_task(make: TaskFactory, dense: nn.Module, student: nn.Module) -> LightningModule:
    """Return a task that trains a student, and was made with the dense model: a teacher.

    Raises:
        PruneError: The task does not hold the model that it is made with.
    """
    task = make(dense)
    places = [
        name for name, module in task.named_modules(remove_duplicate=False) if module is dense
    ]
    if not places:
        raise PruneError(f"task (={type(task).__name__}) must hold the model that it is given")
    for name in places:
        task.set_submodule(name, student)
    return task


def train_student(
    stages: Stages,
    file: str,
    dense: nn.Module,
    student: nn.Module,
    epochs: int,
    *callbacks: Callback,
) -> nn.Module:
    """Return a student that has been trained, now or by an earlier run.

    Args:
        stages: Where to train.
        file: The stage, and behind a slash the name of the file that keeps the student.
        dense: The trained model, a teacher.
        student: What learns; it is changed.
        epochs: Number of epochs.
        *callbacks: What belongs to this training alone.
    """
    config = stages.config
    path, stage = config.output / f"{file}.safetensors", file.partition("/")[0]
    if stages.finished(stage) is not None:
        load_weights(student, path)
        return student
    task = student_task(config.prune_task, dense, student)
    if config.compile:
        student.compile()
    stages.fit(stage, task, 1 if config.fast else epochs, LossGuard(), *callbacks)
    trained = copied(student).cpu()  # a copy is not compiled
    save(trained, path)
    stages.finish(stage)
    return trained

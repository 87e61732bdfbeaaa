"""Runs whose tasks note what each training starts from."""

import copy
from typing import ClassVar

from branchprune.lightning import ClassificationTask

CONFIG = """
name: tiny
model: {class_path: small_training.TinyVGG}
data: {class_path: small_training.Tiny}
task: {class_path: observed_runs.Seen, init_args: {learning_rate: 0.01}}
metric: {val: loss/val, test: loss/test, mode: min, format: number}
dense: {epochs: 2}
"""


class Seen(ClassificationTask):
    """Notes the state of the network at the start of every training."""

    seen: ClassVar = []

    def on_train_start(self):
        Seen.seen.append(copy.deepcopy(self.model.state_dict()))


def teacher_of(task):
    return task.teacher.network


class SeenTeacher(ClassificationTask):
    """Notes the widths of student and teacher in every training."""

    seen: ClassVar = []

    def on_train_start(self):
        widths = self.model.features[0].out_channels, teacher_of(self).features[0].out_channels
        SeenTeacher.seen.append((*widths, teacher_of(self).state_dict()))


def command(path, **options):
    options = {
        "task": "observed_runs.SeenTeacher",
        "prune.task": '{"teacher_weight": 0.5}',
        "output": str(path / "run"),
        "fast": "true",
        "dense.epochs": "0",
        "dense.checkpoint": str(path / "dense.pt"),
    } | {name.replace("__", "."): value for name, value in options.items()}
    settings = {"model": "small_training.TinyVGG", "data": "small_training.Tiny"}
    return ["run", *(part for k, v in (settings | options).items() for part in (f"--{k}", v))]

"""What TensorBoard shows of a blending, read from the events."""

import math
import re

import pytorch_lightning
import torch
from small_training import loader, network, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import branchprune as bp
from branchprune.lightning import BranchPruning, ClassificationTask

EXAMPLE = torch.randn(2, 1, 8, 8)


def events(folder):
    return EventAccumulator(str(folder)).Reload()


def points(folder, tag):
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def blend(folder, **options):
    """Blend with three epochs at α = 0.5 and one at 0, three steps each."""
    logger = pytorch_lightning.loggers.TensorBoardLogger(folder, name="", version="run")
    pruning = BranchPruning(bp.Schedule((0.5, 0.0), hold=3, final_hold=1), example=EXAMPLE)
    run = trainer(4, pruning, logger=logger, **options)
    run.fit(ClassificationTask(network()), loader(), loader(seed=1))
    return folder / "run", pruning


def test_the_branch_alone_is_a_run_with_the_names_of_the_blended_model(tmp_path):
    folder, _ = blend(tmp_path)
    branch = folder / "branch_alone"
    for tag in ("metric/val_acc", "loss/val"):
        assert points(branch, tag) == points(folder, f"{tag}_branch")
        assert [step for step, _ in points(branch, tag)] == [s for s, _ in points(folder, tag)]


def test_alpha_is_stairs(tmp_path):
    folder, pruning = blend(tmp_path)
    [name] = {f"alpha/{name}" for name in list(pruning.blended.alpha)[:1]}
    ends = [(3 * epoch, 3 * epoch + 2) for epoch in range(4)]
    levels = [0.5, 0.5, 0.5, 0.0]
    assert points(folder, name) == [(s, a) for e, a in zip(ends, levels, strict=True) for s in e]


def test_marks_join_the_two_curves_where_alpha_steps(tmp_path):
    folder, _ = blend(tmp_path)
    curve = dict(points(folder, "metric/val_acc"))
    branch = dict(points(folder, "metric/val_acc_branch"))
    (_, first), (_, second), (_, end) = points(folder / "steps_of_alpha", "metric/val_acc")
    assert (first, second) == (branch[8], curve[8]) and math.isnan(end)
    steps = [step for step, _ in points(folder / "steps_of_alpha", "metric/val_acc")]
    assert steps == [8, 9, 10]  # of equal ones TensorBoard shows the last


def test_charts_show_the_blended_metric_once(tmp_path):
    folder, pruning = blend(tmp_path)
    [event] = events(folder).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = events(folder).Tags()["scalars"]
    shown = {
        chart.title: {tag for tag in tags for p in chart.multiline.tag if re.match(p, tag)}
        for category in layout.category
        for chart in category.chart
    }
    for name in ("metric/val_acc", "loss/val"):
        assert shown[f"{name}: blended, and branch alone"] == {name}
    assert shown["all groups"] == {f"alpha/{name}" for name in pruning.blended.alpha}
    assert [category.title for category in layout.category] == ["metric", "loss", "alpha", "share"]


def test_a_training_that_continues_replaces_what_it_does_again(tmp_path):
    checkpoint = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    schedule = bp.Schedule((0.5, 0.0), hold=3, final_hold=1)

    def fit(path=None):
        logger = pytorch_lightning.loggers.TensorBoardLogger(tmp_path, name="", version="run")
        callbacks = BranchPruning(schedule, example=EXAMPLE), checkpoint
        run = trainer(4, *callbacks, logger=logger, enable_checkpointing=True)
        run.fit(ClassificationTask(network()), loader(), loader(seed=1), ckpt_path=path)

    fit()
    [path] = tmp_path.glob("epoch=1-*.ckpt")
    fit(path)
    steps = [step for step, _ in points(tmp_path / "run" / "branch_alone", "loss/val")]
    assert steps == [2, 5, 8, 11]


def test_a_validation_of_its_own_writes_nothing(tmp_path):
    logger = pytorch_lightning.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE, collapse=False)
    run, task = trainer(2, pruning, logger=logger), ClassificationTask(network())
    run.fit(task, loader(), loader(seed=1))
    run.validate(task, loader(seed=1), verbose=False)
    assert len(points(tmp_path / "run" / "branch_alone", "loss/val")) == 2

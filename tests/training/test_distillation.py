"""Learning from the dense network, against formulas written out here."""

import copy

import pytest
import torch
from observed_runs import SeenTeacher, command, teacher_of
from pytorch_lightning import Callback
from small_training import Losses, TinyVGG, distance, loader, network, randomised, trainer
from torch import nn
from torch.utils.data import DataLoader

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.student import student_task
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.training.distillation import Teacher
from branchprune.training.losses import distillation

pytestmark = pytest.mark.usefixtures("without_charts")

EXAMPLE = torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize("temperature", [1.0, 4.0, None])
def test_distance_is_that_of_the_formula(temperature):
    teacher, x = randomised(1), torch.randn(5, 1, 8, 8)
    student = torch.randn(5, 4, requires_grad=True)
    found, _ = Teacher(teacher.train())(x)
    loss = distillation(student, found, temperature)
    with torch.no_grad():
        expected = copy.deepcopy(teacher).eval()(x)
    if temperature is None:
        wanted = sum(((student[i] - expected[i]) ** 2).sum() for i in range(5)).item() / 20
    else:
        wanted = distance(student, expected, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-4) and wanted > 0.01
    loss.backward()
    assert student.grad.abs().sum() > 0 and all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    same = distillation(found, expected, temperature)
    assert same.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 4.0), (0.3, 4.0), (1.0, None)])
def test_training_loss_is_weighted_and_the_others_are_not(weight, temperature):
    """At learning rate zero the student moves only in its BatchNorm statistics."""
    task = ClassificationTask(
        randomised(1), teacher_weight=weight, temperature=temperature, learning_rate=1e-30
    )
    teacher = copy.deepcopy(task.model).eval()
    task.model = student = randomised(2)
    losses, data = Losses(), loader()
    run = trainer(1, losses)
    run.fit(task, data, data)
    expected = []
    with torch.no_grad():
        for x, y in data:
            logits, target = student.train()(x), teacher(x)
            hard = -torch.stack([logits[i].log_softmax(0)[y[i]] for i in range(len(y))]).mean()
            soft = ((logits - target) ** 2).mean().item()
            if temperature is not None:
                soft = distance(logits, target, temperature)
            expected.append((1 - weight) * hard.item() + weight * soft)
    assert losses.seen == pytest.approx(expected, rel=1e-4)
    logged = run.callback_metrics
    assert logged["loss/train"].item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    found = run.validate(task, data, verbose=False)[0]["loss/val"]
    with torch.no_grad():
        hard = [nn.functional.cross_entropy(student.eval()(x), y).item() for x, y in data]
    assert found == pytest.approx(sum(hard) / 3, rel=1e-4)


class Untouched(Callback):
    """The teacher is the same, in every epoch, and in nobody's hands."""

    epochs = 0

    def __init__(self, expected):
        self.expected = expected

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        teacher = teacher_of(pl_module)
        found = teacher.state_dict()
        assert found.keys() == self.expected.keys()
        assert all(torch.equal(found[k], v) for k, v in self.expected.items())
        assert not any(m.training for m in teacher.modules())
        held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        own = {id(p) for p in teacher.parameters()}
        assert not own & held and not own & {id(p) for p in pl_module.parameters()}
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert not any("teacher" in name for name in pl_module.state_dict())
        saved = trainer._checkpoint_connector.dump_checkpoint()["state_dict"]
        assert saved.keys() == pl_module.state_dict().keys()


def test_the_teacher_is_untouched_by_blending_and_collapse():
    model = randomised(1)
    expected = copy.deepcopy(model.state_dict())
    task = ClassificationTask(model, teacher_weight=0.5, learning_rate=0.01)
    untouched = Untouched(expected)
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE)
    trainer(9, pruning, untouched).fit(task, loader(), loader())
    assert untouched.epochs == 2
    untouched.epochs = 0
    assert task.model is pruning.small and task.model.features[0].out_channels == 4
    assert teacher_of(task).features[0].out_channels == 8
    trainer(1, untouched).fit(task, loader(), loader())  # and with the small model as a student
    assert untouched.epochs == 1
    assert [name for name, _ in task.named_parameters()] == [
        f"model.{name}" for name, _ in network().named_parameters()
    ]


def test_the_blended_student_learns_from_the_teacher():
    """With the teacher alone, the labels make no difference, and the loss falls."""
    ends, losses = [], Losses()
    for shift in (0, 1):
        task = ClassificationTask(
            network(), teacher_weight=1.0, learning_rate=0.02, schedule="constant"
        )
        batches = [(x, (y + shift) % 4) for x, y in loader()]
        data = DataLoader(batches, batch_size=None)
        pruning = BranchPruning(bp.Schedule((0.5, 0.0), hold=1, final_hold=20), example=EXAMPLE)
        losses = Losses()
        trainer(99, pruning, losses).fit(task, data, data)
        ends.append(task.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert sum(losses.seen[-3:]) < sum(losses.seen[3:6])  # the ends and the beginning of α = 0


def test_the_teacher_is_the_model_as_it_was():
    model = network()
    task = ClassificationTask(model, teacher_weight=0.5)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert any(p.abs().sum() > 0 for p in teacher_of(task).parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert teacher_of(copy.deepcopy(task)) is not teacher_of(task)


def test_no_weight_means_no_teacher():
    assert ClassificationTask(network()).teacher is None


def test_in_rounds_the_dense_model_is_the_teacher(tmp_path):
    SeenTeacher.seen.clear()
    dense = TinyVGG()
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    options = {"prune.cut": "{}", "prune.finetune.epochs": "1", "prune.rounds.count": "2"}
    options["prune.rounds.max_drop"] = "1.0"
    assert main(command(tmp_path, prune__widths__keep="0.75", **options)) == 0
    assert [widths for *widths, _ in SeenTeacher.seen] == [[6, 8], [4, 8]]
    for *_, teacher in SeenTeacher.seen:
        assert all(torch.equal(teacher[name], value) for name, value in dense.state_dict().items())


def test_a_task_that_copies_its_model_cannot_fine_tune_it():
    dense = network()
    with pytest.raises(bp.PruneError, match="task \\(=ClassificationTask\\) must hold the model"):
        student_task(lambda model: ClassificationTask(copy.deepcopy(model)), dense, network())


def test_a_dense_training_from_random_weights_has_no_teacher(tmp_path, capsys):
    torch.save(TinyVGG().state_dict(), tmp_path / "dense.pt")
    own = {"task.init_args.teacher_weight": "0.5", "prune.task": "{}", "prune.cut": "{}"}
    arguments = command(tmp_path, dense__epochs="1", **own)
    at = arguments.index("--dense.checkpoint")
    assert main(arguments[:at] + arguments[at + 2 :]) == 2
    assert "task.teacher_weight (=0.5)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weight": -0.1}, r"teacher_weight \(=-0.1\)"),
        ({"teacher_weight": 1.1}, r"teacher_weight \(=1.1\)"),
        ({"teacher_weight": float("nan")}, "teacher_weight"),
        ({"teacher_weight": 0.5, "temperature": 0.0}, r"temperature \(=0.0\)"),
        ({"teacher_weight": 0.5, "temperature": -1.0}, "temperature"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(bp.PruneError, match=message):
        ClassificationTask(network(), **options)


def test_a_model_that_cannot_be_copied_says_so():
    model = network()
    model.lock = (i for i in ())
    with pytest.raises(bp.PruneError, match="cannot be copied"):
        ClassificationTask(model, teacher_weight=0.5)

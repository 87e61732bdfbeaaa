"""What BranchPruning does besides α: the best weights, what learns."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from small_training import Scripted, TinyVGG, loader, network, trainer

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.metrics_csv import read_metrics
from branchprune.experiments.run.blend import BlendConfig
from branchprune.experiments.run.config import parse
from branchprune.experiments.run.criterion import CriterionConfig
from branchprune.experiments.run.settings import MetricConfig
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.models import VGG

pytestmark = pytest.mark.usefixtures("without_charts")

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLE = torch.randn(2, 1, 8, 8)


class States(Callback):
    """Copies of the blended model's state at the end of every epoch."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append({k: v.clone() for k, v in self.pruning.blended.state_dict().items()})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit_scripted(script, schedule, **options):
    """Train with scores that are given; return the states before and after the callback."""
    pruning = BranchPruning(schedule, example=EXAMPLE, monitor="score", **options)
    before, after = States(pruning), States(pruning)
    task = Scripted(script, learning_rate=0.05)
    trainer(99, before, pruning, after).fit(task, loader(), loader())
    assert len(before.seen) == len(script)
    assert not any(same(a, b) for i, a in enumerate(before.seen) for b in before.seen[:i])
    return before.seen, after.seen, pruning


NAN = float("nan")


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([1, 3, 2, 5, 4, 4, 4, 6, 1], [1, 3, 7]),  # best in the restart
        ([9, 3, 2, 4, 5, 4, 4, 3, 1], [0, 4, 4]),  # the restart is worse
        ([2, 2, 2, 5, 5, 5, 5, 5, 5], [0, 3, 3]),  # the first of equals
        ([1, 2, 3, 1, 2, 3, 4, 5, 6], [2, 5, 8]),  # the last
        ([NAN, 2, 3, NAN, NAN, 1, NAN, 0, NAN], [2, 5, 5]),
    ],
)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_level_ends_with_the_weights_of_its_best_epoch(script, best, mode):
    script = script if mode == "max" else [-value for value in script]
    schedule = bp.Schedule((0.6, 0.0), hold=3, restarts=[0.02])
    before, after, pruning = fit_scripted(script, schedule, restore_best=mode)
    for epoch, (a, b) in enumerate(zip(before, after, strict=True)):
        level, place = divmod(epoch, 3)
        assert same(b, before[best[level]] if place == 2 else a), epoch
    blended = copy.deepcopy(pruning.blended)
    blended.load_state_dict(before[best[-1]])
    assert same(bp.collapse(blended).state_dict(), pruning.small.state_dict())
    assert pruning.best.state == {}


def test_without_restore_best_nothing_is_put_back():
    schedule = bp.Schedule((0.6, 0.0), hold=2)
    before, after, _ = fit_scripted([2, 1, 2, 1], schedule)
    assert all(map(same, before, after))


def test_every_part_of_an_order_has_its_best():
    schedule = bp.Schedule((0.0,), hold=2, order=["features.0", "features.3", "features.7"])
    before, after, _ = fit_scripted([2, 1, 1, 0, 3, 4], schedule, restore_best="max")
    assert [same(a, b) for a, b in zip(after, before, strict=True)] == [True, False] * 2 + [
        True
    ] * 2
    assert same(after[1], before[0]) and same(after[3], before[2])
    assert [state["alphas"].sum().item() for state in after] == [2, 2, 1, 1, 0, 0]


class Changed(Callback):
    """The names of the original parameters that changed in each epoch."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def state(self):
        return {n: p.detach().clone() for n, p in self.pruning.blended.model.named_parameters()}

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = self.state()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after = self.state()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append({n for n, p in self.after.items() if not torch.equal(p, self.before[n])})


LINEAR = {
    f"{name}.{kind}"
    for name in ("features.0", "features.3", "features.7", "classifier")
    for kind in ("weight", "bias")
}
NORMS = {f"features.{i}.{kind}" for i in (1, 4, 8) for kind in ("weight", "bias")}
EVERY = LINEAR | NORMS  # at α = 0 the wide path's norms are not computed


@pytest.mark.parametrize(
    ("thaw_at", "expected"),
    [
        (1.0, [EVERY, EVERY, EVERY, LINEAR, LINEAR]),
        (0.2, [set(), set(), EVERY, LINEAR, LINEAR]),
        (0.0, [set(), set(), set(), LINEAR, LINEAR]),
        (None, [set()] * 5),
    ],
)
@pytest.mark.parametrize("frozen", [set(), {"features.0.weight", "features.4.bias"}])
def test_the_original_layers_learn_from_thaw_at_on(thaw_at, expected, frozen):
    """With momentum and weight decay, either of which could move what has no gradient."""
    schedule = bp.Schedule((0.7, 0.3, 0.2, 0.0), final_hold=1, restarts=[0.1])
    pruning = BranchPruning(schedule, example=EXAMPLE, thaw_at=thaw_at)
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    task, changed = ClassificationTask(model, weight_decay=0.1), Changed(pruning)
    trainer(9, pruning, changed).fit(task, loader(), loader())
    assert changed.seen == [names - frozen for names in expected]
    original = dict(pruning.blended.model.named_parameters())
    assert {n for n, p in original.items() if not p.requires_grad} == frozen
    if not frozen:
        assert all(p.requires_grad for p in task.model.parameters())


def test_parts_that_wait_at_one_count_for_thaw_at():
    schedule = bp.Schedule((0.1, 0.0), order=["features.0", "features.3", "features.7"])
    pruning = BranchPruning(schedule, example=EXAMPLE, thaw_at=0.2)
    changed = Changed(pruning)
    trainer(9, pruning, changed).fit(ClassificationTask(network()), loader(), loader())
    assert [bool(names) for names in changed.seen] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("thaw_at", [1.0, 0.2])
def test_frozen_parameters_never_learn_and_may_again_afterwards(thaw_at):
    """Of both paths, of private norms, and of what waits for α; with momentum and weight decay."""
    schedule = bp.Schedule((0.7, 0.2, 0.0), final_hold=1)
    options = {"frozen": ["*features.[18].weight"], "thaw_at": thaw_at, "norms": "private"}
    pruning = BranchPruning(schedule, example=EXAMPLE, **options)
    states, changed = States(pruning), Changed(pruning)
    task = ClassificationTask(network(), weight_decay=0.1)
    trainer(9, pruning, states, changed).fit(task, loader(), loader())
    held = {"features.1.weight", "features.8.weight"}
    expected = [EVERY - held if thaw_at == 1 else set(), EVERY - held, LINEAR]
    assert changed.seen == expected
    first, last = states.seen[0], states.seen[-1]
    fixed = {n for n in first if n.endswith(("features.1.weight", "features.8.weight"))}
    assert {n.removesuffix("features.8.weight") for n in fixed if n.endswith("8.weight")} == {
        *("model.", "twin.", "private.model.", "private.twin.")
    }
    assert all(torch.equal(first[n], last[n]) for n in fixed)
    assert not torch.equal(first["twin.features.4.weight"], last["twin.features.4.weight"])
    assert all(p.requires_grad for p in pruning.blended.parameters())
    assert all(p.requires_grad for p in task.model.parameters())
    assert pruning.collapse_error < 1e-10


def test_a_pattern_of_frozen_that_names_nothing():
    pruning = BranchPruning(bp.Schedule((0.0,)), example=EXAMPLE, frozen=["features.1.weight"])
    with pytest.raises(bp.PruneError, match=r"frozen: 'features.1.weight' names no parameter"):
        trainer(1, pruning).fit(ClassificationTask(network()), loader(), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": "*.weight"}, r"frozen \(='\*.weight'\) must be a list"),
        ({"norms": "private", "mixing": "group"}, r"norms \(='private'\) needs mixing='sum'"),
        ({"restore_best": "best", "monitor": "score"}, r"restore_best \(='best'\)"),
        ({"restore_best": "max"}, r"monitor \(=None\)"),
        ({"thaw_at": 1.5}, r"thaw_at \(=1.5\)"),
        ({"thaw_at": -0.1}, "thaw_at"),
        ({"thaw_at": None, "schedule": bp.Schedule((1.0, 0.0))}, "nothing learns"),
    ],
)
def test_bad_arguments_of_the_callback(options, message):
    with pytest.raises(bp.PruneError, match=message):
        BranchPruning(**{"schedule": bp.Schedule((0.0,)), **options})


def test_restore_best_needs_a_validation_an_epoch():
    schedule = bp.Schedule((0.0,), hold=2)
    pruning = BranchPruning(schedule, example=EXAMPLE, monitor="score", restore_best="max")
    with pytest.raises(bp.PruneError, match="check_val_every_n_epoch"):
        trainer(9, pruning, check_val_every_n_epoch=2).fit(Scripted([1, 1]), loader(), loader())


def test_bad_schedule_of_a_task():
    with pytest.raises(bp.PruneError, match=r"schedule \(='linear'\)"):
        ClassificationTask(network(), schedule="linear")


CONFIG = """
model: {class_path: small_training.TinyVGG}
data: {class_path: small_training.Tiny}
task:
  class_path: branchprune.lightning.ClassificationTask
  init_args: {learning_rate: 0.01}
metric: {val: loss/val, test: loss/test, mode: max, format: number}
dense: {epochs: 1}
prune:
  blend: {levels: [0.5, 0.0], restarts: [0.05], restore_best: true}
  task: {teacher_weight: 0.5}
"""


def test_macs_are_those_of_one_image():
    """With an example of two, as with an example of one; more than the small model's at α > 0."""
    found = []
    for example in (EXAMPLE, EXAMPLE[:1]):
        pruning, seen = BranchPruning(bp.Schedule((0.5, 0.0)), example=example), []

        class Spy(Callback):
            def on_train_epoch_end(self, trainer, pl_module, pruning=pruning, seen=seen):
                seen.append(pruning.macs)

        trainer(2, pruning, Spy()).fit(ClassificationTask(network()), loader(), loader())
        assert seen[1] == pruning.plan.after.macs
        found.append(seen)
    assert found[0] == found[1] and found[0][0] > found[0][1]


METRIC = MetricConfig(val="score", mode="min")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "min"),
        ({"monitor": "score", "hold": bp.Plateau()}, "min"),
        ({"monitor": "score_branch", "restore_best": True}, "min"),
        ({"monitor": "accuracy", "monitor_mode": "max", "restore_best": True}, "max"),
        ({"monitor_mode": "max", "hold": bp.Plateau()}, "max"),
        ({"monitor": "other/loss", "hold": bp.Plateau(mode="min")}, "min"),
        ({"monitor": "accuracy"}, "min"),  # nothing watches it
    ],
)
def test_direction_is_that_of_what_is_monitored(options, expected):
    settings = BlendConfig(**options)
    assert settings.direction(METRIC) == expected
    hold = settings.schedule(expected).hold
    assert hold == 1 or hold.mode == expected


@pytest.mark.parametrize(
    "options", [{"hold": bp.Plateau()}, {"final_hold": bp.Plateau()}, {"restore_best": True}]
)
def test_another_metric_needs_a_direction(options):
    with pytest.raises(bp.PruneError, match=r"monitor_mode \(=None\).*\(='accuracy'\)"):
        BlendConfig(monitor="accuracy", **options).direction(METRIC)


@pytest.mark.usefixtures("without_rehearsal")
def test_a_run_restores_the_best_of_what_it_monitors(tmp_path):
    """The accuracy is the metric of the run, and the loss is watched: the smaller, the better."""
    (tmp_path / "config.yaml").write_text(
        CONFIG.replace("loss/val, test: loss/test", "metric/val_acc, test: metric/test_acc")
        + "seed: 1\n"
    )
    command = ["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
    command += ["--prune.blend.monitor", "loss/val", "--prune.blend.restarts", "[]"]
    command += ["--prune.blend.final_hold", "6", "--prune.task.learning_rate", "0.3"]
    assert main(command) == 2
    assert main([*command, "--prune.blend.monitor_mode", "min"]) == 0
    rows = read_metrics(tmp_path / "run" / "prune" / "metrics.csv")
    losses = [row["loss/val"] for row in rows if row.get("alpha/features.0") == 0]
    assert max(losses) > 1.1 * min(losses)  # which the metric's own direction would restore
    collapsed = bp.load(TinyVGG(), tmp_path / "run" / "small.safetensors")
    task = ClassificationTask(collapsed)
    found = trainer(1).validate(task, loader(), verbose=False)[0]["loss/val"]
    assert found == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.usefixtures("without_rehearsal")
def test_a_run_reports_the_blended_model_that_was_collapsed(tmp_path):
    """Not that of the last epoch: the best is, as `mode` says here, that of the largest loss."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert main(["run", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found = {name: score["val"] for name, score in result["scores"].items()}
    assert found["blended_at_zero"] == pytest.approx(found["small"], rel=1e-4)
    last = result["curve"][-1]["branch"]
    assert last != pytest.approx(found["small"], rel=1e-3)  # else nothing was compared
    rows = read_metrics(tmp_path / "run" / "prune" / "metrics.csv")
    shares = [[value for tag, value in row.items() if tag.startswith("share/")] for row in rows]
    between = [values for values in shares if values]
    points = [point for point in result["curve"] if "share" in point]
    assert [p["least_share"] for p in points] == pytest.approx([*map(min, between)])
    assert [p["share"] for p in points] == pytest.approx([sum(v) / len(v) for v in between])
    assert points and all(0 < point["alpha"] < 1 for point in points)


def test_an_optimizer_can_be_any_class_of_a_configuration(tmp_path):
    settings = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    settings["prune"]["task"] = {
        "optimizer": "torch.optim.RMSprop",
        "optimizer_args": {"momentum": 0.5},
        "learning_rate": 0.03,
        "weight_decay": 0.01,
        "undecayed": ["*.expand.*"],
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = parse([str(path)])
    model = VGG([[8, 8]], 10)
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8)))
    task = config.prune_task(blended)
    task.schedule = "constant"
    optimizer = task.configure_optimizers()
    assert type(optimizer) is torch.optim.RMSprop
    ends = {id(p) for name, p in blended.named_parameters() if ".expand." in f".{name}"}
    assert len(ends) > 0
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(p): 0.0 if id(p) in ends else 0.01 for p in blended.parameters()}
    assert {(g["lr"], g["momentum"]) for g in optimizer.param_groups} == {(0.03, 0.5)}


def test_arguments_of_an_optimizer_come_before_its_usual_ones():
    own = {"momentum": 0.5, "nesterov": False, "dampening": 0.1}
    task = ClassificationTask(network(), optimizer_args=own, learning_rate=0.2)
    [group] = task.make_optimizer().param_groups
    assert {name: group[name] for name in own} == own and group["lr"] == 0.2
    [group] = ClassificationTask(network()).make_optimizer().param_groups
    assert group["momentum"] == 0.9 and group["nesterov"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "sgdd"},
            r"optimizer \(='sgdd'\) must be 'sgd', 'adam', 'muon' or an import path",
        ),
        (
            {"optimizer": "torch.optim.Adan"},
            r"optimizer \(='torch.optim.Adan'\): module torch.optim has no Adan; .* is Adam",
        ),
        ({"optimizer_args": {"lr": 1}}, r"optimizer_args.lr \(=1\): the task has learning_rate"),
        ({"optimizer_args": {"nix": 1}}, r"optimizer_args \(=\{'nix': 1\}\): .*'nix'"),
    ],
)
def test_an_optimizer_that_is_none_is_refused(options, message):
    with pytest.raises(bp.PruneError, match=message):
        ClassificationTask(network(), **options, schedule="constant").configure_optimizers()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"optimizer": "muon", "optimizer_args": {"nix": 1}},
            "optimizer (='muon'), optimizer_args (={'nix': 1})",
        ),
        ({"teacher_weight": 0.5, "remember": 3}, "remember (=3): training batches must have"),
    ],
)
def test_a_task_is_checked_before_anything_is_trained(task, message, tmp_path, capsys):
    settings = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    settings["prune"]["task"] = task
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert main(["run", str(path), "--output", str(tmp_path / "run")]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_function_counts_not_the_module_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "scores_of_mine").mkdir()
    (tmp_path / "scores_of_mine/__init__.py").write_text("from scores_of_mine.score import score")
    (tmp_path / "scores_of_mine/score.py").write_text("def score(group):\n    return 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert CriterionConfig("scores_of_mine.score").init()(None) == 1
    (tmp_path / "broken_of_mine.py").write_text("import a_library_that_is_missing")
    with pytest.raises(bp.PruneError, match="No module named 'a_library_that_is_missing'"):
        CriterionConfig("broken_of_mine.score").init()

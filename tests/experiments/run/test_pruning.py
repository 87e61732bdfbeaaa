"""One pipeline: a penalty first, blending or removal at once, fine-tuning, within a budget."""

import copy
import json

import pytest
import torch
from observed_runs import CONFIG, Seen
from safetensors.torch import load_file
from small_training import TinyVGG, loader, trainer
from torch import nn

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.run.finetune import reset
from branchprune.experiments.run.results_file import read_lines
from branchprune.experiments.run.sparsity_training import (
    SparsifyConfig,
    make_penalty,
    sparsify,
)
from branchprune.experiments.run.torch_pruning import make_pruner, prune_by
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.training.penalties import ScalePenalty

pytestmark = pytest.mark.usefixtures("without_charts", "module_without_rehearsal")

EXAMPLE = torch.randn(1, 1, 8, 8)
AT_ONCE = "prune: {cut: {}, finetune: {epochs: 3}}\n"


class OwnParameter(TinyVGG):
    """Holds a parameter that nothing can draw anew."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


@pytest.fixture
def go(tmp_path):
    """Run; return the folder, the line and what each training started from."""
    Seen.seen = []

    def run(text, *options, name="run", status=0):
        (tmp_path / "config.yaml").write_text(CONFIG + text)
        output = ["--output", str(tmp_path / name)]
        assert main(["run", str(tmp_path / "config.yaml"), *output, *options]) == status
        if status:
            return None
        return tmp_path / name, read_lines(tmp_path / "results" / "tiny.jsonl")[-1], Seen.seen

    return run


def selected(dense, planned, init="l1"):
    blended = bp.attach(dense, planned, init)
    blended.alpha = 0.0
    return bp.collapse(blended)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_at_once_means_that_the_selection_is_fine_tuned(go):
    folder, line, starts = go(AT_ONCE)
    dense = bp.load(TinyVGG(), folder / "dense.safetensors")
    expected = selected(dense, bp.plan(dense, EXAMPLE, 0.5))
    assert same(starts[1], expected.state_dict()) and len(starts) == 2
    assert line["epochs"] == {"dense": 2, "finetune": 3} and line["curve"] == []
    assert line["method"] == "cut"  # none is given
    end = bp.load(TinyVGG(), folder / "small.safetensors").state_dict()
    assert not same(end, starts[1]) and end.keys() == starts[1].keys()


def test_a_fresh_model_has_the_widths_and_nothing_else_of_the_dense_one(go):
    text = AT_ONCE.replace("epochs: 3", "epochs: 3, fresh: true")
    _, line, starts = go(text)
    _, other, again = go(text, "--dense.epochs", "1", name="other")
    assert same(starts[1], again[3]), "it depends on the dense training"
    assert line["params_removed"] == other["params_removed"] > 0.5
    fresh = starts[1]
    torch.testing.assert_close(fresh["features.1.weight"], torch.ones(4))
    bound = 1 / 9**0.5  # kaiming_uniform(a=√5) of fan-in 9, as nn.Conv2d has it
    assert 0.5 * bound < fresh["features.0.weight"].abs().max() <= bound


def test_blending_and_then_fine_tuning_the_small_model(go):
    folder, line, starts = go("prune: {blend: {levels: [0.5, 0.0]}, finetune: {epochs: 3}}\n")
    assert line["epochs"] == {"dense": 2, "prune": 2, "finetune": 3}
    blended_end = bp.load(TinyVGG(), folder / "prune" / "small.safetensors")
    assert same(starts[2], blended_end.state_dict())
    result = json.loads((folder / "result.json").read_text())
    assert {"dense", "small", "blended_at_zero"} == result["scores"].keys()


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("prune: {blend: {levels: [0.5, 0.2, 0.0], hold: 2}, cost: {epochs: 9}}", {"prune": 9}),
        ("prune: {blend: {levels: [0.5, 0.0], restarts: [0.1]}, cost: {epochs: 9}}", {"prune": 9}),
        (
            "prune: {blend: {levels: [0.5, 0.0]}, finetune: {}, cost: {epochs: 9}}",
            {"prune": 2, "finetune": 7},
        ),
        (
            "prune: {cut: {}, sparsify: {epochs: 2}, finetune: {}, cost: {epochs: 9}}",
            {"sparsify": 2, "finetune": 7},
        ),
    ],
)
def test_a_budget_of_epochs_is_spent_to_the_last(go, text, epochs):
    _, line, _ = go(text + "\n")
    assert line["epochs"] == {"dense": 2} | epochs


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("cut: {}, finetune: {}", 8e6),
        (
            "blend: {levels: [0.5, 0.2, 0.0], hold: 2, thaw_at: 0.2, mixing: group, matching: 0.5}",
            2.1e7,
        ),
        ("blend: {levels: [0.5, 0.0], order: [features.0, features.3, features.7]}", 2.1e7),
        ("blend: {levels: [0.5, 0.0]}, finetune: {}, task: {teacher_weight: 0.5}", 2.1e7),
        ("cut: {}, sparsify: {epochs: 1}, finetune: {}", 1e7),
        ("cut: {}, finetune: {}, rounds: {gradual: true, count: 2, max_drop: null}", 1e7),
    ],
)
def test_a_budget_of_multiply_adds_is_kept_and_used(go, text, budget):
    """Counted independently: by the whole training, of which the budget has seen single steps."""
    _, line, _ = go(f"prune: {{{text}, cost: {{train_macs: {budget}}}}}\n")
    assert line["train_macs"] <= budget
    _, more, _ = go(f"prune: {{{text}, cost: {{train_macs: {budget + 4e6}}}}}\n", name="more")
    last = "finetune" if "finetune" in line["epochs"] else [*line["epochs"]][-1]
    longer = more["epochs"][last] - line["epochs"][last]
    an_epoch = (more["train_macs"] - line["train_macs"]) / longer
    assert longer >= 1 and budget - line["train_macs"] < an_epoch


@pytest.mark.parametrize(
    ("gradual", "count", "width"),
    [
        ("true", 3, lambda w, k, t: w * (k / w) ** t),
        ("cubic", 2, lambda w, k, t: w - (w - k) * (1 - (1 - t) ** 3)),
    ],
)
def test_gradual_rounds_end_at_the_widths_of_the_plan(go, gradual, count, width):
    """keep = 0.35, such as in three equal factors: 0.705, 0.497, 0.35."""
    text = f"widths: {{keep: 0.35}}, cut: {{}}, finetune: {{}}, cost: {{epochs: {2 * count + 1}}}"
    rounds = f"{{gradual: {gradual}, count: {count}, max_drop: null}}"
    _, line, starts = go(f"prune: {{{text}, rounds: {rounds}}}\n")
    widths = [[len(state[f"features.{i}.weight"]) for i in (0, 3, 7)] for state in starts[1:]]
    parts = [i / count for i in range(1, count + 1)]
    expected = [[round(width(w, k, t)) for w, k in ((8, 3), (16, 6))] for t in parts]
    assert widths == [[narrow, narrow, wide] for narrow, wide in expected]
    assert widths[-1] == [3, 3, 6]
    assert line["epochs"] == {"dense": 2} | {f"round_{i + 1:02}": 2 for i in range(count)}
    planned = bp.plan(TinyVGG(), EXAMPLE, 0.35)
    assert line["params_removed"] == 1 - planned.after.params / planned.before.params


def test_a_small_model_starts_from_weights_that_the_dense_one_had_early(go, tmp_path, capsys):
    """The channels are those of the trained model; the first training keeps the weights."""
    early = tmp_path / "run" / "early.safetensors"
    own = go(AT_ONCE, "--prune.cut.rewind", "early")
    own_start = own[2][-1]
    at_once = go(AT_ONCE, "--prune.cut.rewind", str(early), name="other")
    assert same(own_start, at_once[2][-1])
    dense = bp.load(TinyVGG(), at_once[0] / "dense.safetensors")
    trained = bp.attach(dense, bp.plan(dense, EXAMPLE, 0.5), "l1")
    norms = {g.name: dense.get_submodule(g.name).weight.detach() for g in trained.plan.groups[:3]}

    def of_dense(group):
        return norms[group.name].abs().flatten(1).sum(1)

    before = bp.load(TinyVGG(), early)
    assert not same(before.state_dict(), dense.state_dict())
    expected = selected(before, bp.plan(before, EXAMPLE, 0.5), of_dense)
    assert same(at_once[2][-1], expected.state_dict())
    rounds = AT_ONCE.replace("cut: {}", f"cut: {{rewind: {early}}}, rounds: {{}}")
    go(rounds, name="rounds", status=2)
    assert "of the dense model, which rounds leave" in capsys.readouterr().err


def test_the_dense_training_alone_keeps_early_weights_for_others(go, tmp_path, capsys):
    """As comparisons have it: one dense training, and runs that begin with its checkpoint."""
    own = go(AT_ONCE, "--prune.cut.rewind", "early", name="own")
    assert main(["dense", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "dense")]) == 0
    begun = ["--dense.epochs", "0", "--dense.checkpoint", str(tmp_path / "dense/dense.safetensors")]
    other = go(AT_ONCE, *begun, "--prune.cut.rewind", "early", name="other")
    assert same(own[2][-1], other[2][-1])
    (tmp_path / "dense" / "early.safetensors").unlink()
    capsys.readouterr()
    go(AT_ONCE, *begun, "--prune.cut.rewind", "early", name="third", status=2)
    assert "dense/early.safetensors does not exist" in " ".join(capsys.readouterr().err.split())


def test_random_filters_are_filters_of_the_dense_model(go):
    name = "branchprune.criteria.scores.random_choice"
    text = AT_ONCE.replace("cut", f"criterion: {{name: {name}}}, cut")
    folder, _, starts = go(text)
    dense = bp.load(TinyVGG(), folder / "dense.safetensors").state_dict()["features.0.weight"]
    kept = starts[1]["features.0.weight"]
    assert all(any(torch.equal(row, other) for other in dense) for row in kept)
    _, _, again = go(text, "--seed", "1", name="other")
    assert not same(starts[1], again[-1])


def test_a_module_that_cannot_be_made_anew_is_found_before_the_training(go, capsys):
    go(
        AT_ONCE.replace("epochs: 3", "epochs: 3, fresh: true"),
        *("--model", "test_pruning.OwnParameter"),
        status=2,
    )
    assert "OwnParameter has parameters" in " ".join(capsys.readouterr().err.split())
    assert Seen.seen == []


def test_a_criterion_is_given_the_gradients_of_training_batches(monkeypatch, go):
    """Compared with those of the cross-entropy, by hand."""
    found = []

    def spy(model, planned, init="l1", **options):
        found.append((copy.deepcopy(model), [p.grad.clone() for p in model.parameters()]))
        return bp.attach(model, planned, init, **options)

    monkeypatch.setattr("branchprune.experiments.run.cut.attach", spy)
    folder, _, _ = go(AT_ONCE.replace("cut", "criterion: {calibration: 2}, cut"))
    [(model, gradients)] = found
    dense = bp.load(TinyVGG(), folder / "dense.safetensors")
    assert same(model.state_dict(), dense.state_dict())
    dense.train()
    for _, (x, y) in zip(range(2), loader(), strict=False):
        nn.functional.cross_entropy(dense(x), y).backward()
    for a, b in zip(gradients, (p.grad for p in dense.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def fitted(dense):
    """The least-squares fit of the branch, without the pipeline."""
    blended = bp.attach(dense, bp.plan(dense, EXAMPLE, 0.5), "l1")
    return bp.fit_expand(blended, [x for x, _ in loader()][:2])


def test_a_removal_is_fitted_to_what_it_replaces(go):
    folder, _, starts = go(AT_ONCE.replace("cut", "criterion: {fit: 2}, cut"))
    expected = fitted(bp.load(TinyVGG(), folder / "dense.safetensors"))
    expected.alpha = 0.0
    assert same(starts[1], bp.collapse(expected).state_dict())
    plain = go(AT_ONCE, name="plain")[2]
    assert not same(starts[1], plain[-1])


def test_a_fit_needs_a_data_module():
    pruning = BranchPruning(bp.Schedule((0.5, 0.0)), example=EXAMPLE, fit=2)
    with pytest.raises(bp.PruneError, match=r"fit \(=2\) needs a data module"):
        trainer(2, pruning).fit(ClassificationTask(TinyVGG()), loader(), loader())


def test_branches_start_from_their_fit(go):
    folder, _, starts = go("prune: {criterion: {fit: 2}, blend: {levels: [0.5, 0.0]}}\n")
    expected = fitted(bp.load(TinyVGG(), folder / "dense.safetensors"))
    expected.alpha = 0.5
    assert same(starts[1], expected.state_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cost: {epochs: 2}, blend: {levels: [0.5, 0.2, 0.0]}", "cost (=2) is used up"),
        ("cost: {epochs: 3, train_macs: 1.0e+9}, cut: {}", "one positive number, epochs (=3)"),
        ("cost: {}, blend: {}", "epochs (=None) or train_macs (=None)"),
        ("cost: {epochs: 9}, blend: {hold: {patience: 2}}", "blend.hold (=Plateau("),
        ("cost: {epochs: 9}, blend: {final_hold: {patience: 2}}", "blend.final_hold (=Plateau("),
        ("cost: {epochs: 9}, blend: {hold: {patience: 2}}, finetune: {}", "blend.hold (=Plateau("),
        (
            "cut: {rewind: early}, finetune: {fresh: true}",
            "would throw away the weights of cut.rewind",
        ),
        ("cost: {epochs: 9}, cut: {}, finetune: {}, rounds: {}", "gradual (=False)"),
        ("cost: {epochs: 9}, blend: {}, rounds: {gradual: true, max_drop: null}", "blend is not"),
        ("cost: {epochs: 9}, cut: {}", "nothing is trained"),
        ("blend: {}, finetune: {fresh: true}", "would throw away"),
        ("blend: {mixing: step}, cost: {train_macs: 1.0e+9}", "blend.mixing (='step')"),
        ("blend: {order: [features.0, features.7]}", "leaves out features.3"),
        ("blend: {average: 1.5}", "average (=1.5)"),
        ("cut: {}, finetune: {average: 1.5}", "average (=1.5)"),
        ("torch_pruning: {}, blend: {}", "and blend and torch_pruning are set"),
        ("blend: {}, cut: {}", "--prune.blend null"),
        ("widths: {keep: 0.25}", "none is set"),
        ("torch_pruning: {}, criterion: {fit: 2}", "--prune.criterion null"),
        ("criterion: {fit: -1}, blend: {}", "fit (=-1)"),
        ("criterion: {calibration: -1}, cut: {}", "calibration (=-1)"),
        ("criterion: {name: taylor}, cut: {}", "(='taylor') sees criterion.calibration (=0)"),
        ("criterion: {name: l9}, cut: {}", "criterion.name (='l9') must be one of random, l0, l1"),
    ],
)
def test_settings_that_contradict_each_other(go, capsys, text, message):
    go(f"prune: {{{text}}}\n", status=2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_penalty_of_network_slimming_is_that_of_its_definition():
    model = TinyVGG()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    x = torch.randn(4, 1, 8, 8)
    model(x).square().sum().backward()
    ScalePenalty(model, 0.3).add_gradient(0.5)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = model(x).square().sum() + 0.3 * sum(norm.weight.abs().sum() for norm in norms)
    loss.backward()
    for a, b in zip(found, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_a_penalty_without_a_norm_to_act_on():
    with pytest.raises(bp.PruneError, match="bn_scale"):
        ScalePenalty(nn.Conv2d(3, 4, 3), 0.1)


NORMS, CONVOLUTIONS = (1, 4, 8), (0, 3, 7)
SPARSIFIED = "prune: {cut: {}, sparsify: {epochs: 2, weight: WEIGHT}}\n"


@pytest.fixture(scope="module")
def unpenalised(tmp_path_factory):
    """The wide network, trained as long with a penalty of no weight: its kind is all the same."""
    path = tmp_path_factory.mktemp("unpenalised")
    (path / "config.yaml").write_text(CONFIG + SPARSIFIED.replace("WEIGHT", "0.0"))
    assert main(["run", str(path / "config.yaml"), "--output", str(path / "run")]) == 0
    return bp.load(TinyVGG(), path / "run" / "sparsify" / "wide.safetensors")


@pytest.mark.parametrize(
    ("penalty", "layers"),
    [("bn_scale", NORMS), ("lasso", CONVOLUTIONS), ("group_lasso", NORMS), ("group_norm", NORMS)],
)
def test_a_large_penalty_shrinks_what_it_acts_on(go, unpenalised, penalty, layers):
    folder, line, _ = go(SPARSIFIED.replace("WEIGHT", f"1.0, penalty: {penalty}"))
    assert line["epochs"] == {"dense": 2, "sparsify": 2}
    wide = bp.load(TinyVGG(), folder / "sparsify" / "wide.safetensors")
    ends = [
        sum(net.state_dict()[f"features.{i}.weight"].abs().sum() for i in layers)
        for net in (unpenalised, wide)
    ]
    assert ends[1] < 0.9 * ends[0]
    narrow = bp.load(TinyVGG(), folder / "small.safetensors").state_dict()
    assert same(narrow, selected(wide, bp.plan(wide, EXAMPLE, 0.5)).state_dict())


def test_the_penalty_of_torch_pruning_is_its_own():
    model = TinyVGG()
    planned = bp.plan(model, EXAMPLE, 0.5)
    penalty = make_penalty(SparsifyConfig(penalty="group_norm", weight=0.2), model, planned)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient(0.5)
    found = [p.grad.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_pruner("group_norm", model, planned, reg=0.2).regularize(model)
    assert sum(g.abs().sum() for g in found) > 0
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))


def test_the_model_with_the_penalty_is_not_the_teacher(monkeypatch):
    def train(stages, file, teacher, student, epochs, penalty):
        assert teacher is dense and penalty.penalty.scales[0] is student.features[1].weight
        return student

    module = "branchprune.experiments.run.sparsity_training.train_student"
    monkeypatch.setattr(module, train)
    dense = TinyVGG()
    wide = sparsify(SparsifyConfig(), dense, dense, bp.plan(dense, EXAMPLE, 0.5), None)
    own = {id(parameter) for parameter in dense.parameters()}
    assert not own & {id(parameter) for parameter in wide.parameters()}
    assert same(wide.state_dict(), dense.state_dict())


@pytest.mark.parametrize("kind", ["magnitude", "group_norm"])
def test_torch_pruning_leaves_every_layer_in_its_mode(kind):
    model = TinyVGG().train()
    model.features[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    make_pruner(kind, model, bp.plan(model, EXAMPLE, 0.5))
    assert {name: module.training for name, module in model.named_modules()} == before


def test_gradients_of_the_wide_model_do_not_ask_for_features_of_branches(go):
    criterion, blend = "criterion: {name: taylor, calibration: 1}", "blend: {levels: [0.5, 0.0]}"
    _, line, _ = go(f"prune: {{{criterion}, {blend}, task: {{feature_weight: 0.5}}}}\n")
    assert line["epochs"] == {"dense": 2, "prune": 2}


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_are_not_those_of_a_teacher_alone(name, go, capsys):
    criterion = f"criterion: {{name: {name}, calibration: 1}}"
    go(f"prune: {{{criterion}, cut: {{}}, task: {{teacher_weight: 1.0}}}}\n", status=2)
    error = " ".join(capsys.readouterr().err.split())
    assert f"prune.criterion.name (={name!r}) goes by gradients" in error
    assert "prune.task.teacher_weight (=1) must be less" in error
    sparsify = "sparsify: {epochs: 1}"  # what has learned under it is not its teacher
    go(f"prune: {{{criterion}, {sparsify}, cut: {{}}, task: {{teacher_weight: 1.0}}}}\n")


@pytest.mark.parametrize("kind", ["magnitude", "group_norm"])
@pytest.mark.parametrize("keep", [22 / 64, 0.5, 0.9])
def test_torch_pruning_reaches_the_widths_of_the_plan(kind, keep):
    model = TinyVGG()
    before = copy.deepcopy(model.state_dict())
    planned = bp.plan(model, EXAMPLE, keep)
    small = prune_by(kind, model, planned)
    assert same(model.state_dict(), before)
    assert sum(p.numel() for p in small.parameters()) == planned.after.params
    assert small.eval()(EXAMPLE).shape == (1, 4)
    rows = {tuple(row.flatten().tolist()) for row in before["features.0.weight"]}
    assert {tuple(row.flatten().tolist()) for row in small.features[0].weight} <= rows


@pytest.mark.parametrize("pruner", ["magnitude", "group_norm"])
def test_a_run_with_torch_pruning(go, pruner):
    folder, line, starts = go(AT_ONCE.replace("cut: {}", f"torch_pruning: {{pruner: {pruner}}}"))
    assert line["epochs"] == {"dense": 2, "finetune": 3}
    dense = bp.load(TinyVGG(), folder / "dense.safetensors")
    expected = prune_by(pruner, dense, bp.plan(dense, EXAMPLE, 0.5))
    assert same(starts[1], expected.state_dict())


def test_without_torch_pruning_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    model = TinyVGG()
    message = r"pruner \(='magnitude'\) needs .*: pip install \"branchprune\[compare\]\"$"
    with pytest.raises(bp.PruneError, match=message):
        prune_by("magnitude", model, bp.plan(model, EXAMPLE, 0.5))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_a_module_that_cannot_be_made_new_is_named():
    with pytest.raises(bp.PruneError, match="Odd has parameters"):
        Odd().apply(reset)


def test_some_parameters_are_spared_weight_decay():
    task = ClassificationTask(
        TinyVGG(), weight_decay=0.1, undecayed=["*.bias", "model.features.1.*"]
    )
    decayed, spared = task.make_optimizer().param_groups
    names = {id(p): name for name, p in task.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    found = {names[id(p)] for p in spared["params"]}
    expected = {n for n in names.values() if n.endswith("bias") or n == "model.features.1.weight"}
    assert found == expected and len(decayed["params"]) + len(found) == len(names)


def test_only_the_dense_model_is_trained_and_a_run_goes_on_from_it(tmp_path, go):
    whole, line, _ = go(AT_ONCE)
    options = [str(tmp_path / "config.yaml"), "--output", str(tmp_path / "dense")]
    assert main(["dense", *options]) == 0
    found = json.loads((tmp_path / "dense" / "dense" / "finished.json").read_text())
    assert found["record"]["train_macs"] == line["dense_train_macs"] > 0
    assert found["scores"]["test"] == line["dense"]
    first, second = (load_file(f / "dense.safetensors") for f in (whole, tmp_path / "dense"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "dense" / "small.safetensors").exists()

"""The coverage table: small models through the real command, and all that can go wrong."""

import json
import signal
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from models import counted_macs
from torch import nn

import branchprune as bp
from branchprune.benchmarks import zoo, zoo_child, zoo_models, zoo_table
from branchprune.benchmarks.zoo_table import Row
from branchprune.cli import main
from branchprune.graph.folding import fold_bias

MODELS = {"squeezenet1_1": "squeezenet", "shufflenet_v2_x0_5": "shufflenetv2"}
ROOT = Path(__file__).parents[2]


def command(folder, *args):
    return main(["zoo", "--output", str(folder), "--image_size", "64", *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    names = json.dumps(["squeezenet1_1", "shufflenet*x0_5"])
    assert command(path, "--models", names, "--jobs", "2") == 0
    return path


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(row, timeout):
        raise AssertionError(f"{row.model} is run")

    monkeypatch.setattr(zoo, "run_apart", refuse)


def rows_in(folder):
    lines = (folder / "zoo.jsonl").read_text().splitlines()
    return {row["model"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize("name", MODELS)
def test_row_says_what_other_computations_find(folder, name):
    row, x = rows_in(folder)[name], torch.randn(1, 3, 64, 64)
    model = torchvision.models.get_model(name, weights=None).eval()
    plan = bp.plan(model, x, keep=0.5)
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    small = bp.collapse(blended)
    for when, net in (("before", model), ("after", small)):
        assert row[f"params_{when}"] == sum(p.numel() for p in net.parameters())
        assert row[f"macs_{when}"] == counted_macs(net, x)
        if name == "squeezenet1_1":
            convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
            assert row[f"channels_{when}"] == sum(m.out_channels for m in convolutions)
    assert row["family"] == MODELS[name]
    assert (row["exact"], row["traced"], row["error"], row["stage"]) == (True, True, None, "done")
    assert row["difference_eval"] == row["difference_train"] == 0
    assert 0 < row["collapse_error"] <= 1e-10, "the branches are not mere selections"
    assert row["groups"] == row["pruned_groups"] + row["frozen_groups"] == len(plan.groups)
    assert sum(kind["groups"] for kind in row["frozen"].values()) == row["frozen_groups"]
    frozen = sum(kind["macs_share"] for kind in row["frozen"].values())
    assert row["macs_share_prunable"] + frozen == pytest.approx(1)
    assert "it is an output of the model" in row["frozen"]
    assert row["versions"].items() >= {"torch": version("torch")}.items()
    assert {"plan", "attach", "collapse"} <= row["seconds"].keys()
    assert 2**27 < row["peak_memory"] < 2**33
    assert row["input_shape"] == [3, 64, 64]


def test_files_agree(folder):
    rows = rows_in(folder)
    assert {row.model: asdict(row) for row in zoo_table.read_csv(folder / "zoo.csv")} == rows
    text = (folder / "zoo.md").read_text()
    for name, row in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert f"{row['params_before']:,} → {row['params_after']:,}" in line
        assert f"{row['macs_before']:,} → {row['macs_after']:,}" in line
        assert f"{row['macs_share_prunable']:.1%}" in line
        assert f"| {row['collapse_error']:.1e} |" in line
    assert "| all | 2 | 2 |" in text and "Failing: none" in text
    assert "--image_size 64`" in text
    assert {path.name for path in folder.iterdir()} == {"zoo.jsonl", "zoo.csv", "zoo.md"}


def test_second_run_runs_nothing_and_mends_the_tables(folder, nothing_runs, capsys):
    before = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "zoo.csv").unlink()
    assert command(folder, "--models", "shufflenet*x0_5", "--models+", "squeezenet1_1") == 0
    assert "2 models are done, 0 to do" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_failed_and_torn_rows_and_other_settings_run_again(folder, tmp_path, monkeypatch, capsys):
    first, second = (folder / "zoo.jsonl").read_text().splitlines()
    failed = json.dumps(json.loads(first) | {"exact": False, "error": "out of luck"})
    (tmp_path / "zoo.jsonl").write_text(f"{failed}\n{second[:90]}")
    ran = []

    def run(row, timeout):
        ran.append(row.model)
        return next(
            zoo.parse(li, zoo_table.Row) for li in (first, second) if f'"{row.model}"' in li
        )

    monkeypatch.setattr(zoo, "run_apart", run)
    assert command(tmp_path, "--models", json.dumps(list(MODELS))) == 0
    assert sorted(ran) == sorted(MODELS)
    rows = zoo_table.read_rows(tmp_path / "zoo.jsonl")
    assert {key[-1]: row.exact for key, row in rows.items()} == dict.fromkeys(MODELS, True)
    assert (tmp_path / "zoo.csv").read_text() == (folder / "zoo.csv").read_text()
    with pytest.raises(StopIteration):
        monkeypatch.setattr(zoo, "run_apart", lambda row, timeout: next(iter(())))
        command(tmp_path, "--models", "squeezenet1_1", "--keep", "0.25")


def test_models_that_fail_become_rows_and_are_named_last(tmp_path, capsys):
    args = ["--models", "squeezenet1_1", "--image_size", "8"]
    assert command(tmp_path, *args) == 1
    row = rows_in(tmp_path)["squeezenet1_1"]
    assert not row["exact"] and not row["traced"]
    assert row["stage"] == "build" and "Output size is too small" in row["error"]
    assert "\n" not in row["error"] and row["macs_share_prunable"] is None
    assert row["error"] in capsys.readouterr().out.splitlines()[-1]
    assert f"- squeezenet1_1: FAILED at build: {row['error']}" in (tmp_path / "zoo.md").read_text()
    [same] = zoo_table.read_csv(tmp_path / "zoo.csv")
    assert asdict(same) == row
    assert command(tmp_path, *args, "--timeout", "0.01") == 1, "a failed model runs again"
    assert rows_in(tmp_path)["squeezenet1_1"]["error"] == "took longer than 0.01 s"


def child(code, monkeypatch, tmp_path, timeout=60.0):
    """Run a model in a process that runs `code` instead, with the row's JSON in `text`."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys, time\ntext = sys.argv[-1]\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return zoo.run_apart(Row("torchvision", "net", "nets", 0.5, 0, None, 1), timeout)


PLANNED = 'print(text.replace("build", "collapse"), flush=True)\n'


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (f"os.kill(os.getpid(), {signal.SIGKILL:d})", "ended by SIGKILL, as without memory"),
        (f"os.kill(os.getpid(), {signal.SIGTERM:d})", "ended by SIGTERM"),
        ("sys.exit('/home/me/site-packages/lib/net.py:3: broken')", "lib/net.py:3: broken"),
        ("sys.exit(3)", "status 3"),
        ("time.sleep(60)", "took longer than 2 s"),
    ],
)
def test_process_that_ends_leaves_how_far_it_came(end, error, monkeypatch, tmp_path):
    row = child(PLANNED + end, monkeypatch, tmp_path, timeout=2)
    assert (row.model, row.stage, row.error, row.exact) == ("net", "collapse", error, False)


def squeezenet():
    return Row("torchvision", "squeezenet1_1", "squeezenet", 0.5, 0, 64, 1)


@pytest.fixture
def few_layers(monkeypatch):
    """Make a SqueezeNet have two of its eight modules, which tell as much of the rows."""

    def build(*_):
        model = torchvision.models.squeezenet1_1(num_classes=10)
        model.features, model.classifier[1] = model.features[:5], nn.Conv2d(128, 10, 1)
        nn.init.zeros_(model.classifier[1].bias)
        return model.eval(), (3, 32, 32)

    monkeypatch.setitem(zoo_child.LIBRARIES, "torchvision", (None, build))


@pytest.mark.usefixtures("few_layers")
def test_check_of_the_collapse_can_fail(monkeypatch):
    def wrong(module, bias, reduce):
        return 1.0001 * fold_bias(module, bias, reduce)

    monkeypatch.setattr("branchprune.collapsing.collapse.fold_bias", wrong)
    with pytest.raises(bp.PruneError, match="not exact"):
        zoo_child.measure(row := squeezenet(), lambda _: None)
    assert row.stage == "collapse" and not row.exact and row.collapse_error is None
    monkeypatch.setattr(zoo_child, "disturb", lambda *args, **options: None)
    zoo_child.measure(row := squeezenet(), lambda _: None)
    assert row.exact, "the biases of a fresh model are 0, so only the noise shows the error"


@pytest.mark.usefixtures("few_layers")
def test_large_models_are_pruned_in_rounds(monkeypatch):
    zoo_child.measure(whole := squeezenet(), lambda _: None)
    monkeypatch.setattr(zoo_child, "LARGEST_ENDS", 6_000)
    zoo_child.measure(apart := squeezenet(), lambda _: None)
    assert (whole.rounds, apart.exact) == (1, True) and apart.rounds > 3
    assert (apart.params_after, apart.macs_after) == (whole.params_after, whole.macs_after)
    assert 0 < apart.collapse_error <= 1e-10


def convolutions(count):
    return nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(count)), nn.Flatten(), nn.Linear(8, 2))


def test_rounds_are_filled(monkeypatch):
    planned = bp.plan(convolutions(5), torch.randn(1, 8, 1, 1), 0.5)
    monkeypatch.setattr(
        zoo_child, "LARGEST_ENDS", 2 * 2 * 8 * 4
    )  # two layers, each made and read once
    assert zoo_child._rounds(planned) == [["0", "1"], ["2", "3"], ["4"]]


def test_the_largest_error_of_all_rounds_counts(monkeypatch):
    def collapse(blended):
        return bp.collapse(blended), next(errors)

    errors = iter([2e-15, 3e-15, 1e-15])
    monkeypatch.setitem(
        zoo_child.LIBRARIES, "torchvision", (None, lambda *_: (convolutions(3).eval(), (8, 1, 1)))
    )
    monkeypatch.setattr(zoo_child, "LARGEST_ENDS", 1)
    monkeypatch.setattr(zoo_child, "collapse_with_error", collapse)
    zoo_child.measure(row := squeezenet(), lambda _: None)
    assert (row.rounds, row.collapse_error, row.exact) == (3, 3e-15, True)


def test_shares_are_of_all_that_is_counted():
    planned = bp.plan(convolutions(3), torch.randn(1, 8, 1, 1), 0.5)
    row = squeezenet()
    row.macs_before = 2 * planned.before.macs  # as much again in attention
    row.describe(planned)
    [stays] = row.frozen.values()
    assert (row.macs_share_prunable, stays["macs_share"]) == (
        pytest.approx(3 * 64 / (3 * 64 + 16) / 2),
        pytest.approx(16 / (3 * 64 + 16) / 2),
    )


@pytest.mark.parametrize(("jobs", "threads"), [(1, 8), (3, 2), (16, 1)])
def test_models_side_by_side_share_the_threads(jobs, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    [row] = zoo._blank_rows(zoo.Options(models="alexnet", jobs=jobs)).values()
    assert row.threads == threads


def test_a_table_is_of_one_setting(tmp_path):
    rows = [Row("torchvision", "net", "nets", keep, 0, None, 1) for keep in (0.5, 0.25)]
    zoo_table.write_tables(tmp_path, {row.key: row for row in rows}, rows[1].key[:-1])
    assert zoo_table.read_csv(tmp_path / "zoo.csv") == rows[1:]
    assert "| all | 1 | 0 |" in (tmp_path / "zoo.md").read_text()


def test_families_of_other_tasks_stand_last():
    families = ["video", "vgg", "segmentation", "alexnet"]
    rows = [Row("torchvision", "net", family, 0.5, 0, None, 1) for family in families]
    found = [line[0] for line in zoo_table.summary(rows)]
    assert found == ["family", "alexnet", "vgg", "segmentation", "video", "all"]


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_comparison_at_alpha_1_can_fail(mode, monkeypatch):
    class Wrong(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + (self.training == (mode == "train"))

    def attach(model, plan):
        blended = bp.attach(model, plan)
        blended.model.features[0].__class__ = Wrong
        return blended

    monkeypatch.setattr(zoo_child, "attach", attach)
    with pytest.raises(bp.PruneError, match="not those of the model"):
        zoo_child.measure(row := squeezenet(), lambda _: None)
    found = {"eval": row.difference_eval, "train": row.difference_train}
    assert found.pop(mode) > 0 and [*found.values()] == [0]
    assert row.stage == "alpha = 1" and not row.exact


def test_noise_reaches_what_is_constant_and_all_of_a_branch():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4))
    nn.init.zeros_(model[0].bias)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    zoo_child.disturb(model, 0, only_constant=True)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    norm = {f"1.{k}" for k in ("weight", "bias", "running_mean", "running_var")}
    assert changed == norm | {"0.bias"}
    assert (model[1].running_var > 0).all()
    zoo_child.disturb(model, 0, only_constant=False)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == before.keys() - {"1.num_batches_tracked"}
    difference = (model[2].weight - before["2.weight"]).square().mean().sqrt()
    assert 0.02 < difference / before["2.weight"].square().mean().sqrt() < 0.5


def test_every_model_of_torchvision_but_detectors_is_there():
    families = zoo_models.torchvision_families()
    assert {"resnet18", "vit_h_14", "fcn_resnet50", "swin3d_b", "s3d"} <= families.keys()
    assert not any(word in name for name in families for word in ("rcnn", "ssd", "raft", "quant"))
    known = set(torchvision.models.list_models())
    assert families.keys() < known and len(families) >= 90
    assert (families["resnet18"], families["r3d_18"]) == ("resnet", "video")
    assert families["lraspp_mobilenet_v3_large"] == "segmentation"


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("shufflenet_v2_x0_5", None, (3, 224, 224)),
        ("shufflenet_v2_x0_5", 40, (3, 40, 40)),
        ("lraspp_mobilenet_v3_large", None, (3, 520, 520)),
        ("r3d_18", None, (3, 16, 112, 112)),
    ],
)
def test_inputs_are_those_of_the_weights(name, size, shape):
    assert zoo_models.torchvision_model(name, size)[1] == shape


def test_model_that_has_to_know_the_size_is_told(monkeypatch):
    from torchvision.models import vision_transformer

    monkeypatch.setattr(vision_transformer, "VisionTransformer", Told)
    assert zoo_models.torchvision_model("vit_b_16", 96)[0].size == 96
    assert zoo_models.torchvision_model("vit_h_14", None)[0].size == 518


class Told(nn.Module):
    def __init__(self, image_size, **_):
        super().__init__()
        self.size = image_size


def test_timm_is_asked_for_names_models_and_sizes(monkeypatch):
    def build(model_name, pretrained=False):
        net = nn.Conv2d(1, 2, 1)
        net.default_cfg = {"input_size": (1, 28, 30)}
        return net

    build.__module__ = "timm.models.tiny"
    timm = SimpleNamespace(
        models=SimpleNamespace(model_entrypoint=lambda name: build),
        list_models=lambda: ["tiny_net"],
        create_model=build,
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert zoo_models.timm_families() == {"tiny_net": "tiny"}
    assert zoo_models.timm_model("tiny_net", None)[1] == (1, 28, 30)
    assert zoo_models.timm_model("tiny_net", 64)[1] == (1, 64, 64)


BAD = {
    "unknown model": (["--models", "resnet99"], "models names 'resnet99'"),
    "pattern without a model": (["--models", '["alexnet", "zz*"]'], "models names 'zz*'"),
    "unknown library": (["--library", "keras"], "keras"),
    "keep": (["--keep", "1.5"], "1.5"),
    "jobs": (["--jobs", "0"], "jobs"),
    "timeout": (["--timeout", "-1"], "timeout"),
    "image size": (["--image_size", "0"], "image_size"),
    "unknown option": (["--modles", "alexnet"], "modles"),
    "library that is not installed": (["--library", "timm"], 'pip install "branchprune[zoo]"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case, tmp_path, capsys, monkeypatch, nothing_runs):
    args, message = BAD[case]
    monkeypatch.setitem(sys.modules, "timm", None)
    assert command(tmp_path / "out", *args) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(tmp_path / "file" / "out", "--models", "alexnet") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("it is an output of the model", "it is an output of the model"),
        ("read by `view` (node view_3): it splits", "read by `view`: it splits"),
        ("tied by add_2 to add_1, whose width stays", "tied by add to add, whose width stays"),
        ("read by layer1.0.act (Act): unknown", "read by … (Act): unknown"),
        ("layer1.0 is called 2 times", "… is called n times"),
        ("48 channels cannot shrink to 0.5 of them", "n channels cannot shrink to n of them"),
        ("the size 768; flatten(1) or size -1", "the size n; flatten(1) or size -1"),
        ("tied by mul to features_1_0_layer_scale", "tied by mul to features_layer_scale"),
    ],
)
def test_reasons_are_summarised(reason, kind):
    assert zoo_table.kind_of(reason, ["", "layer1.0", "layer1.0.act", "flatten"]) == kind


def test_the_page_is_filled_where_there_is_a_table(folder, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import readme_tables

    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    tables = readme_tables.PAGES["scripts/results/README.md"]
    marked = "<!-- zoo -->outdated<!-- /zoo -->"
    assert "outdated" in readme_tables.filled(marked, tables), "no result: the block stays"
    (tmp_path / "zoo.csv").write_text((folder / "zoo.csv").read_text())
    filled = readme_tables.filled(marked, tables)
    assert "| squeezenet | 1 | 1 |" in filled and "Failing: none" in filled
    assert "outdated" not in filled and readme_tables.filled(filled, tables) == filled

"""Every shipped configuration, and every variant of it, through the real command line."""

import importlib
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from shipped import AUTOENCODER, CONFIGS, ROOT, SMALL, draw_folders, dry_run, packed

import branchprune as bp
from branchprune.benchmarks import cost
from branchprune.cli import main
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.run.config import make_parser
from branchprune.experiments.variants import JOINT, read_file

sys.path.append(str(ROOT / "scripts"))
config_table = importlib.import_module("config_table")
sys.path.pop()

ENTRIES = [*config_table.entries()]
RUNS = [e for e in ENTRIES if e.verb == "run" and "configs/gpu.yaml" not in e.files]
SCALED = {
    entry.variants[-1]: entry
    for entry in RUNS
    if entry.files == ("configs/vgg16_cifar10.yaml",) and len(entry.variants) == 2
}
"""The variants of the paper at the scale of two cores, by name."""

FEW = ["--data.init_args.batch_size=8"]


def parsed(*arguments):
    return make_parser().parse_args([*files_as_options(arguments), "--output", "unused"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return draw_folders(tmp_path_factory.mktemp("data"))


def data_of(entry, folders):
    """What an entry takes instead of data that are not there."""
    own = entry.settings["data"].get("class_path", "")
    if "images" in entry.variants:  # a folder of the user's
        folder = folders["vgg16_cifar10"]["init_args"]["root"]
        return {"init_args": {"root": folder, "image_size": 16, "limit_train": 64}}
    if own.endswith(("Digits", "Photographs")) or entry.settings["name"].startswith("digits"):
        return {}
    return folders[entry.settings["name"]]


def smaller(entry):
    """The options that make a network or its images small, where no variant does."""
    if entry.settings["name"] == "own_model":
        quick = ["--prune.criterion.calibration=1", "--prune.widths.keep=0.25"]
        return ["--data.init_args.image_size=16", *quick, *FEW]
    if entry.settings["name"] == "vgg16_cifar10" and "cpu" not in entry.variants:
        depth = next((v[:4] for v in entry.variants if v in ("vgg6_16px", "vgg7_16px")), "vgg16")
        return [f"--model.init_args.stages={SMALL[depth]}", "--precision", "32-true"]
    if entry.settings["name"] == "autoencoder_carla":
        return AUTOENCODER[: 2 if "photographs" in entry.variants else None]
    return FEW if entry.settings["name"].startswith("digits") else []


@pytest.fixture
def runs(folders, tmp_path, monkeypatch, capsys):
    """Carry out an entry on few small images, and compare the result with what its file states."""
    monkeypatch.chdir(ROOT)
    return partial(carry_out, folders=folders, tmp_path=tmp_path, capsys=capsys)


def carry_out(entry, folders, tmp_path, capsys):
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"data": found} if (found := data_of(entry, folders)) else {}))
    arguments = [*entry.command.split()[2:], "--config", str(data)]
    result = dry_run(arguments, tmp_path / "run", smaller(entry))
    assert "Latency" in capsys.readouterr().out
    stated = {key: entry.settings.get(key) for key in ("name", "method", "preset")}
    found = {key: result[key] for key in ("experiment", "method", "preset")}
    expected = zip(stated.values(), found.values(), strict=True)
    assert all(said in (None, seen) for said, seen in expected), (stated, found)


def joined():
    """Yield the variants of the paper, those together that change different settings."""
    variants = read_file(CONFIGS / "vgg16_cifar10.yaml").variants
    changes = {n: {k: v for k, v in variants[n].items() if k != "method"} for n in SCALED}
    blended = {n: v for n, v in changes.items() if v.get("prune", {}).get("blend", {}) is not None}
    cut = {n: v for n, v in changes.items() if n not in blended}
    for names in (*packed(blended), *packed(cut)):  # what changes the blending needs it
        yield replace(SCALED[names[-1]], variants=("cpu", *names))


def test_variants_are_run_together_where_none_changes_what_another_does():
    one, deep = {"prune": {"blend": {"hold": 1}}}, {"prune": {"blend": {"hold": {"epochs": 2}}}}
    none, other = {"prune": {"blend": None}}, {"prune": {"cut": {}}, "task": {"rate": 1}}
    variants = {"one": one, "deep": deep, "none": none, "other": other, "same": one}
    assert packed(variants) == [["one", "other"], ["deep"], ["none"], ["same"]]
    assert packed({"other": other, "one": one}) == [["other", "one"]]


def name_of(entry):
    return entry.command.split("configs/")[-1]


@pytest.mark.parametrize("entry", [e for e in RUNS if not e.variants], ids=name_of)
def test_every_configuration_runs(entry, runs):
    runs(entry)


@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize(
    "entry",
    [*(e for e in RUNS if e.variants and e not in SCALED.values()), *joined()],
    ids=name_of,
)
def test_every_variant_runs(entry, runs):
    runs(entry)


@pytest.mark.parametrize("name", SCALED)
def test_every_variant_of_the_paper_is_understood_alone(name):
    entry = SCALED[name]
    found = parsed(*(str(ROOT / file) for file in entry.files), *entry.command.split()[3:])
    stated = [entry.settings.get(key) for key in ("name", "method", "preset")]
    assert [found.name, found.method, found.preset] == stated
    plain = parsed(str(CONFIGS / "vgg16_cifar10.yaml"), "--variant", "cpu")
    for config in (found, plain):
        del config["method"], config["config"]
    assert str(found) != str(plain)


@pytest.mark.parametrize(
    ("entry", "changed"),
    [
        (["recipe.yaml"], ("ours", "paper", "cut", 400)),
        (["recipe.yaml", "cpu"], ("ours", "cpu", "cut", 80)),
        (["vgg16_cifar10.yaml"], ("blended", "paper", "blend", None)),
        (["vgg16_cifar10.yaml", "cpu", "three_stage"], ("three-stage", "cpu", "cut", 4)),
        (["vgg16_cifar10.yaml", "three_stage", "cpu"], ("three-stage", "cpu", "cut", 4)),
        (["vgg16_cifar10.yaml", "three_stage"], ("three-stage", "paper", "cut", 10)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_the_algorithm_and_the_epochs_of(entry, changed):
    file, *variants = entry
    chosen = [part for name in variants for part in ("--variant", name)]
    config = parsed(str(CONFIGS / file), *chosen)
    [algorithm] = [x for x in ("blend", "cut", "torch_pruning") if config.prune[x] is not None]
    tuned = config.prune.finetune and config.prune.finetune.epochs
    assert (config.method, config.preset, algorithm, tuned) == changed


def test_the_papers_experiments_are_the_papers():
    """Weighted sum, random start, steps of 0.1, both paths train, α = 0 trained at the end."""
    for name, last in (("vgg16_cifar10", 35), ("autoencoder_carla", 60)):
        prune = parsed(str(CONFIGS / f"{name}.yaml")).prune
        blend = prune.blend
        assert prune.criterion.name == "random" and prune.finetune is None
        assert (blend.levels, blend.mixing, blend.thaw_at) == ({"steps": 0.1}, "sum", 1.0)
        assert (blend.learning_rate, blend.restore_best) == ("restart", True)
        assert (blend.final_hold.max_epochs, blend.final_hold.patience) == (last, 10)


def test_the_page_names_every_file_and_every_variant_and_is_up_to_date():
    text = config_table.README.read_text()
    assert config_table.filled(text) == text, "run scripts/config_table.py"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for path in CONFIGS.rglob("*.yaml"):
        about = [row for row in rows if path.name in row]
        assert about, path
        for name in read_file(path).variants:
            if JOINT not in name:
                assert any(re.search(rf"\b{re.escape(name)}`", row) for row in about), (path, name)
    assert all(len(row.strip("| ").split(" | ")) >= 3 for row in rows)  # each has its description
    assert len([*CONFIGS.rglob("*.yaml")]) <= 27


def test_the_page_notices_a_change():
    text = config_table.README.read_text()
    assert config_table.filled(text.replace("| 6 min |", "| 7 min |")) == text
    with pytest.raises(ValueError, match="<!-- variants -->"):
        config_table.filled(text.replace("<!-- variants -->", ""))


def test_durations_are_those_of_the_results():
    found = {entry.command: config_table.duration(entry) for entry in ENTRIES}
    vgg = "branchprune run configs/vgg16_cifar10.yaml"
    lines = config_table.read_lines(config_table.RESULTS / "vgg16_cifar10.jsonl")
    blended = [sum(x["seconds"].values()) for x in lines if x["method"] == "blended"]
    dense = [x["seconds"]["dense"] for x in lines if "dense" in x["seconds"]]
    frozen = [x["seconds"]["prune"] for x in lines if x["method"] == "frozen"]
    assert found[f"{vgg} --variant cpu"] == f"{sum(blended) / len(blended) / 60:.0f} min"
    expected = f"{(frozen[0] + sum(dense) / len(dense)) / 60:.0f} min"
    assert found[f"{vgg} --variant cpu --variant frozen"] == expected
    assert found[vgg] == "not measured"


@pytest.mark.parametrize(
    ("name", "size", "widths"),
    [
        ("vgg16_cifar10", 32, {(64, 22): 2, (128, 44): 2, (256, 88): 3, (512, 176): 6}),
        ("autoencoder_carla", 128, {(64, 22): 5, (128, 44): 11}),
    ],
)
def test_the_papers_widths(name, size, widths):
    parser = make_parser()
    config = parser.parse_args(files_as_options([str(CONFIGS / f"{name}.yaml")]))
    model = parser.instantiate(config).model
    plan = bp.plan(model, torch.randn(1, 3, size, size), config.prune.widths.keep)
    assert Counter((plan.groups[i].width, plan.groups[i].kept) for i in plan.pruned) == widths
    assert config.preset == "paper"
    if name == "autoencoder_carla":
        assert tuple(model.encoder(torch.randn(1, 3, size, size)).shape) == (1, 128, 16, 16)


@pytest.mark.parametrize("name", ["vgg16_cifar10", "recipe", "autoencoder_carla"])
def test_the_gpu_file_parses_on_top_of_every_experiment(name):
    config = parsed(str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "gpu.yaml"), "--variant", "cpu")
    assert config.compile and config.precision == "bf16-mixed"
    assert config.data.init_args.channels_last and config.preset == "cpu"


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.verb == "cost"], ids=lambda e: e.command)
def test_what_costs_are_measured(entry, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = cost.parse_options(entry.command.split()[2:])
    assert {*options.models} == {"vgg16", "autoencoder"}
    assert (options.devices == ["cpu"]) == ("cpu" in entry.variants)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.verb == "compare"], ids=lambda e: e.files[0]
)
def test_every_comparison_is_understood(entry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*entry.command.split()[1:], "--table", "--output", str(tmp_path)]) == 0
    assert "no results in" in capsys.readouterr().out

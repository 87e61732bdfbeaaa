"""Every shipped configuration, and every variant of it, through the real command line."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import branchprune as bp
from branchprune.cli import main
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare.config import Budget
from branchprune.experiments.run.config import make_parser

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = ("vgg16_cifar10", "autoencoder_carla")
ALONE = [
    path for path in sorted(CONFIGS.glob("*.yaml")) if "output" in yaml.safe_load(path.read_text())
]
FILES = {"config.yaml", "dense.safetensors", "small.safetensors", "result.json", "report.html"}


def combinations():
    """Yield an experiment with each of the files that change it, made small by cpu.yaml."""
    for name in EXPERIMENTS:
        base, folder = CONFIGS / f"{name}.yaml", CONFIGS / name
        for path in sorted(folder.glob("*.yaml")):
            changed = path.stem.removesuffix(".cpu")
            before = [] if changed in ("cpu", "ours") else ["blended"]
            before += ["cpu", *([changed] if path.stem != changed else [])]
            files = [file for b in before if (file := folder / f"{b}.yaml").exists()]
            yield pytest.param(name, [base, *files, path], id=f"{name}-{path.stem}")


def comparisons():
    """Yield each comparison that two cores bear with each of its methods."""
    for path in sorted((CONFIGS / "compare").glob("*.yaml")):
        if "methods:" in path.read_text() and path.stem.endswith(("_cpu", "_16px")):
            comparison = compare_config.read(path)
            for method in comparison.methods.values():
                yield pytest.param(comparison, method, id=f"{comparison.name}-{method.name}")


def draw(path: Path, seed: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of ten classes in the form of CIFAR-10, and a folder of frames."""
    root = tmp_path_factory.mktemp("data")
    for seed in range(160):
        split = "train" if seed < 120 else "test"
        draw(root / "classes" / split / f"class{seed % 10}" / f"{seed}.png", seed, 32, 32)
    for seed in range(40):
        town = "Town05" if seed >= 30 else "Town01"
        split = "test" if seed >= 30 else "train"
        draw(root / "frames" / split / f"{town}_{seed}.png", seed, 128, 216)
    return {
        "vgg16_cifar10": {
            "class_path": "branchprune.data.ImageFolder",
            "init_args": {"root": str(root / "classes"), "batch_size": 8, "limit_train": 32},
        },
        "autoencoder_carla": {"init_args": {"root": str(root / "frames"), "batch_size": 4}},
    }


def check(files, output: Path, options: list[str]) -> dict:
    arguments = ["run", *map(str, files), "--output", str(output), "--fast", "true", *options]
    assert main(arguments) == 0
    stages = {path.name for path in output.iterdir()} - FILES
    assert "dense" in stages and len(stages) >= 2
    for stage in (each for each in stages if not each.endswith("_score")):  # the others train
        inside = {path.name.split(".")[0] for path in (output / stage).iterdir()}
        assert {"metrics", "events"} <= inside
    assert not (output.parent / "results").exists()  # a dry run is no result
    result = json.loads((output / "result.json").read_text())
    assert result["collapse"]["relative_error"] <= result["collapse"]["tolerance"]
    assert result["cost"]["small"]["params"] < result["cost"]["dense"]["params"]
    return result


@pytest.mark.parametrize(
    "config", [p for p in ALONE if p.stem not in EXPERIMENTS], ids=lambda p: p.stem
)
def test_every_configuration_runs(config, tmp_path, capsys):
    check([config], tmp_path / "run", [])
    assert "Latency" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "files"), list(combinations()))
def test_every_variant_runs(name, files, folders, tmp_path):
    data = tmp_path / "data.yaml"
    embedded = any(path.stem == "photographs" for path in files)
    data.write_text(yaml.safe_dump({} if embedded else {"data": folders[name]}))
    result = check([*files, data], tmp_path / "run", [])
    settings = [yaml.safe_load(path.read_text()) for path in files]
    assert result["experiment"] == name
    assert result["method"] == [each["method"] for each in settings if "method" in each][-1]
    assert result["preset"] == [each["preset"] for each in settings if "preset" in each][-1]


@pytest.mark.parametrize(("comparison", "method"), list(comparisons()))
def test_every_method_of_a_comparison_runs(comparison, method, folders, tmp_path):
    data = tmp_path / "data.yaml"
    experiment = comparison.base[0].stem
    settings = folders[experiment]["init_args"]
    data.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    own = ["--name", comparison.experiment, "--method", method.name]
    dense = ["--dense.epochs", "1", "--dense.checkpoint", "null"]
    result = check([*comparison.base, *method.files, data], tmp_path / "run", [*own, *dense])
    assert result["method"] == method.name and result["dataset"]
    if "stage" not in method.name:  # of a dry run only the first rounds
        assert result["cost"]["small"]["params"] < 0.13 * result["cost"]["dense"]["params"]


@pytest.mark.parametrize("path", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_files_of_every_comparison_parse(path):
    if "methods:" not in path.read_text():
        return
    comparison = compare_config.read(path)
    assert comparison.name == path.stem
    assert all(isinstance(budget, Budget) for budget in comparison.budgets.values())
    for method in comparison.methods.values():
        files = [part for f in (*comparison.base, *method.files) for part in ("--config", str(f))]
        assert make_parser().parse_args([*files, "--output", "unused"]).prune.keep == 0.34375


@pytest.mark.parametrize(
    ("name", "size", "widths"),
    [
        ("vgg16_cifar10", 32, {(64, 22): 2, (128, 44): 2, (256, 88): 3, (512, 176): 6}),
        ("autoencoder_carla", 128, {(64, 22): 5, (128, 44): 11}),
    ],
)
def test_the_papers_widths(name, size, widths):
    parser = make_parser()
    parsed = parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")])
    model = parser.instantiate(parsed).model
    plan = bp.plan(model, torch.randn(1, 3, size, size), parsed.prune.keep)
    assert Counter((plan.groups[i].width, plan.groups[i].kept) for i in plan.pruned) == widths
    assert parsed.preset == "paper"
    if name == "autoencoder_carla":
        assert tuple(model.encoder(torch.randn(1, 3, size, size)).shape) == (1, 128, 16, 16)


def test_the_gpu_file_parses_on_top_of_every_experiment():
    for name in EXPERIMENTS:
        files = [CONFIGS / f"{name}.yaml", CONFIGS / "gpu.yaml"]
        parsed = make_parser().parse_args([part for f in files for part in ("--config", str(f))])
        assert parsed.compile and parsed.precision == "bf16-mixed"
        assert parsed.data.init_args.channels_last

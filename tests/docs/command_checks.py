"""What the commands on the pages must do: a check for each kind of command, by its pattern."""

import importlib
import json
import re
import shlex
import subprocess
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import yaml
from pages import PAGES, ROOT, blocks
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from run_checks import (
    ENTRIES,
    FRAMES,
    World,
    check_demo,
    check_field_method,
    check_images,
    check_own,
    check_repeated,
    check_run,
    check_shipped,
    check_stored,
    check_tensorboard,
    write_net,
    write_own,
)
from torch.utils.data import DataLoader, TensorDataset

import branchprune as bp
from branchprune.benchmarks import cost
from branchprune.cli import main
from branchprune.experiments.compare import config as comparison
from branchprune.lightning import BranchPruning, ClassificationTask
from branchprune.models import VGG


def check_compare(command, world):
    """A comparison: one dense model, then every method that the file names, by `run`."""
    assert main(shlex.split(command)[1:]) == 0
    path = Path(shlex.split(command)[2])
    dense, *others = world.jobs.values()
    assert dense.name == "dense" and len(others) > 5
    if "--jobs" in command:
        assert world.side_by_side == [int(command.split("--jobs ")[1].split()[0])]
    assert f"runs/compare/{path.stem}/dense" in dense.command()
    assert not {*world.jobs} - {"dense"} - {run.name for run in comparison.read(path).runs()}


def check_field_methods(command, world):
    """The field's methods on a network of one's own: its dense training, then the runs it names."""
    write_net(world)
    main(shlex.split(command)[1:])
    dense, *others = world.jobs.values()
    assert "net.yaml" in dense.command() and "runs/compare/mine/dense" in dense.command()
    names = {f"a_tenth_of_the_dense_training/{method}-0" for method in ("rewound", "L1_norm")}
    assert {job.name for job in others} == names


def check_search(command, world):
    """A search: the section on the page in the file of the README, one dense model, then trials."""
    write_own(world)
    [section] = [each for each in blocks("configs/README.md", "yaml") if "search:" in each]
    with (world.folder / "my.yaml").open("a") as file:
        file.write(section)
    assert main(shlex.split(command)[1:]) == 1  # no trial is made here
    dense, *trials = world.jobs.values()
    assert "runs/search/mine/dense" in dense.command() and len(trials) == 30
    words = trials[0].command()
    assert {*words} >= {f"--{key}" for key in yaml.safe_load(section)["search"]["space"]}


def check_reproduce(command, world):
    """The paper's experiments: each variant once a seed, below runs/ unless it is recorded."""
    module = importlib.import_module("reproduce")
    options = shlex.split(command)[2:]
    module.main([*options, "--runs", str(world.folder / "runs/reproduce")])
    names = {*world.jobs}
    assert {f"vgg16_cifar10/{name}-0" for name in ("paper", "ours", "three_stage")} <= names
    assert {"autoencoder_carla/paper-2", "vgg16_cifar10/multiplicative-0"} <= names
    words = world.jobs["vgg16_cifar10/ours-0"].command()
    assert "configs/recipe.yaml" in words and not any("scripts/results" in w for w in words)


def check_next(command, world):
    """The long runs, of which there is no time for any: what is left is said."""
    module = importlib.import_module("reproduce")
    assert module.main([*shlex.split(command)[2:], "--minutes", "0"]) == 0
    assert "left: full_size, " in world.printed()


def check_figures(command, world):
    """A script that draws: its figures lie below runs/ unless they are recorded."""
    script, *options = shlex.split(command)[1:]
    module, output = importlib.import_module(Path(script).stem), world.folder / "runs/figures"
    name = Path(options[0]).stem if options and options[0].startswith("configs") else ""
    shown = ["--output", str(output / f"{name}.png" if name else output)]
    output.mkdir(parents=True, exist_ok=True)
    module.main([*options, *shown])
    assert [*output.glob(f"{name}.png" if name else "fig4b*.png")]


def check_help(command, world):
    """Help and version."""
    assert main(shlex.split(command)[1:]) == 0 and "branchprune" in world.printed()


def check_make(command, world):
    """A target of the Makefile."""
    dry = ["make", "-n", "-C", str(ROOT), shlex.split(command)[1]]
    done = subprocess.run(dry, check=True, stdout=subprocess.PIPE, text=True).stdout
    expected = {
        "demo": ["branchprune run configs/digits.yaml"],
        "test": ["ruff check", "mypy", "pytest", "--nbmake"],
        "lint": ["ruff check", "lint-imports", "mypy"],
        "help": [""],
    }
    assert all(part in done for part in expected[shlex.split(command)[1]])


def check_pytest(command, world):
    """The tests of a room."""
    assert [*(ROOT / command.split()[1]).rglob("test_*.py")]


def check_notebooks(command, world):
    """The notebooks, as `make test` runs them."""
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "test"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert "--nbmake --nbmake-timeout=300" in done.stdout
    assert [*(ROOT / "notebooks").glob("*.ipynb")]


def check_install(command, world):
    """Extras that are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"\[([\w,]+)\]", command)
    assert {*",".join(extras).split(",")} - {""} <= {*project["optional-dependencies"]}


def check_bench(command, world):
    """What blending costs, with images of one size and as few of them as can be."""
    assert main([*shlex.split(command)[1:], *"--batch 1 --repeats 2".split()]) == 0
    assert "dense / collapsed, inference" in " ".join(world.printed().split())


def check_bench_model(command, world):
    """A small network of ours, beside what is left of its channels, for a moment."""
    made = "branchprune.models:VGG --init_args '{stages: [[32, 32], [64]]}'"
    small = f"{made} --example 1x3x16x16 --seconds 0.01"
    words = re.sub("MODEL|resnet18", small, command)
    keep = "" if "--keep" in words else " --keep 0.5"
    assert main(shlex.split(words + keep)[1:]) == 0
    printed = " ".join(world.printed().split())
    assert "1×3×16×16 in ONNX Runtime" in printed and "times as fast" in printed


def check_verb(command, world):
    """A command as such, without its arguments."""
    assert main(["--help"]) == 0
    assert command.split()[1] in re.findall(r"^(\w+) +\w", world.printed(), re.M)


def check_plan(command, world):
    """A model by name, or by the import path of a class: here one of torchvision's."""
    words = shlex.split(command.replace("my_package:MyNet", "torchvision.models:squeezenet1_1"))
    assert main(words[1:]) == 0
    assert "whatever widths are chosen" in world.printed()


def check_compress(command, world):
    """A network of ours with its weights, and a folder of images; a step instead of minutes."""
    net = VGG([[8, 8], [16]])
    torch.save(net.state_dict(), world.folder / "mine.pt")
    words = command.replace("my_package:MyNet", "branchprune.models:VGG")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "images")  # the network is not trained
        words = words.replace("--minutes 5", "--steps 1 --init_args.stages '[[8, 8], [16]]'")
        assert main(shlex.split(words)[1:]) == 0
    assert bp.load(net, world.folder / "small.safetensors").classifier.in_features == 8
    assert "left" in (world.folder / "small.md").read_text()


def check_export(command, world):
    """A network of torchvision, whose weights are random, and said to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "squeezenet1_1")
        words = command.replace("MODEL", "squeezenet1_1 --example 1x3x64x64")
        assert main(shlex.split(words)[1:]) == 0
    onnx.checker.check_model(onnx.load(world.folder / "squeezenet1_1.onnx"))
    assert "squeezenet1_1.onnx" in world.printed()


def check_show(command, world):
    """A file of ours: what it says, and a line for each layer."""
    bp.save(VGG([[8], [16]]), world.folder / "small.safetensors", license="mit")
    assert main(shlex.split(command)[1:]) == 0
    said = world.printed()
    assert re.search(r"^license +mit$", said, re.M)
    assert re.search(r"^features\.4 +Conv2d +16×8×3×3 +1,168$", said, re.M)


def check_collapse(command, world):
    """The best checkpoint of a network of ours that a callback of ours has blended."""
    net, images = VGG([[8, 8], [16]], in_channels=1), torch.randn(8, 1, 8, 8)
    data = DataLoader(TensorDataset(images, torch.arange(8)), 4)
    keeper = ModelCheckpoint(world.folder, "best", monitor="metric/val_acc_branch")
    pruning = BranchPruning(bp.Schedule([0.0]), keep=0.5, example=images[:1])
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, callbacks=[pruning, keeper], accelerator="cpu", **options)
    trainer.fit(ClassificationTask(net), data, data)
    made = "branchprune.models:VGG --init_args '{stages: [[8, 8], [16]], in_channels: 1}'"
    assert main(shlex.split(command.replace("my_package:MyNet", made))[1:]) == 0
    small = bp.load(world.folder / "small.safetensors")
    assert torch.allclose(small(images), pruning.small.eval()(images), atol=1e-5)
    for name in ("small.safetensors", "small.md"):  # other commands write files of these names
        (world.folder / name).unlink()


def check_cost(command, world):
    """Time and memory of the paper's models, below runs/."""
    options = cost.parse_options(shlex.split(command)[2:])
    assert {*options.models} == {"vgg16", "autoencoder"}
    assert str(options.output) == "runs/cost.json"


def check_zoo(command, world):
    """Every model of a library; processes are stood in for."""
    if "--library timm" in command:
        assert main(shlex.split(command)[1:]) == 2  # as long as timm is not installed
        return
    assert main(shlex.split(command)[1:]) == 0
    assert len((world.folder / "runs/zoo/zoo.csv").read_text().splitlines()) > 90


def check_plan_speed(command, world):
    """The speed of planning, of a small model."""
    module = importlib.import_module("plan_speed")
    small = "--model squeezenet1_1 --image_size 64 --pairs 1 --memory_runs 0"
    small += " --target_images 2 --target_image_size 32"
    output = world.folder / "runs" / "plan_speed.json"
    output.parent.mkdir(exist_ok=True)
    assert module.main([*shlex.split(command)[2:], *small.split(), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["rows"][0]["what"] == "plan, seconds"


def check_tables(command, world):
    """The generated tables, of pages that are there; tests/scripts makes them."""
    assert set(importlib.import_module("readme_tables").PAGES) <= {*PAGES}


def check_config_table(command, world):
    """The table of configurations is up to date."""
    assert importlib.import_module("config_table").main(["--check"]) == 0


def check_mechanism(command, world):
    """The figure of the README."""
    module = importlib.import_module("draw_mechanism")
    module.ROOT = world.folder
    module.main([])
    assert (world.folder / "runs/figures/mechanism.svg").exists()


def check_record_carla(command, world):
    """Frames of CARLA: options that the recorder knows; tests/scripts records with a stand-in."""
    options = importlib.import_module("record_carla")._parse(shlex.split(command)[2:])
    assert options.test_towns == ["Town02"] and str(options.output) == "data/carla"


def check_yolo(command, world):
    """A YOLO: its options; tests/scripts trains with a stand-in."""
    importlib.import_module("small_yolo")  # before ultralytics
    options = importlib.import_module("yolo").parse_options(shlex.split(command)[2:])
    assert str(options.folder) == "runs/yolo" and options.keep == 0.5


SCRIPT = "python scripts/"
CHECKS: dict[str, Callable[[str, World], None]] = {
    r"branchprune run configs/digits\.yaml": check_demo,
    "|".join(map(re.escape, sorted(ENTRIES - {"branchprune run configs/digits.yaml"}))): (
        lambda command, world: SHIPPED[command.split()[1]](command, world)
    ),
    r"branchprune run configs/autoencoder_carla\.yaml( --variant \w+)*" + FRAMES: check_shipped,
    r"branchprune run configs/(own_model\.yaml --variant blend|digits_unet\.yaml) --prune.*": (
        check_run
    ),
    r"branchprune run configs/own_model\.yaml --variant images .*": check_images,
    r"branchprune run configs/vgg16_cifar10\.yaml configs/gpu\.yaml .*": check_run,
    r"branchprune run configs/compare/vgg7_16px\.yaml --variant .*": check_run,
    r"branchprune run runs/digits/config\.yaml --output runs/again": check_repeated,
    r"branchprune run runs/x/config\.yaml --output runs/again": check_stored,
    r"branchprune run configs/methods\.yaml net\.yaml --variant .*": check_field_method,
    r"branchprune run my\.yaml": check_own,
    r"branchprune (run --help|--version|--help)": check_help,
    r"branchprune compare configs/compare/\w+\.yaml --jobs \d": check_compare,
    r"branchprune compare configs/methods\.yaml --overlay net\.yaml .*": check_field_methods,
    r"branchprune search my\.yaml.*": check_search,
    r"branchprune bench": check_bench,
    r"branchprune bench \S+ .*": check_bench_model,
    r"branchprune plan \S+( --example \S+)?": check_plan,
    r"branchprune compress .*": check_compress,
    r"branchprune export MODEL --format onnx": check_export,
    r"branchprune show small\.safetensors": check_show,
    r"branchprune collapse best\.ckpt my_package:MyNet": check_collapse,
    r"branchprune zoo( --\w+ \S+)*": check_zoo,
    r"branchprune (run|compare|cost)": check_verb,
    r"tensorboard --logdir runs/digits": check_tensorboard,
    r"make (demo|test|lint|help)": check_make,
    r"pytest tests/\w+( -q)?": check_pytest,
    r"pytest --nbmake --nbmake-timeout=\d+ notebooks": check_notebooks,
    r"pip install .*": check_install,
    SCRIPT + r"reproduce\.py --preset .*": check_reproduce,
    SCRIPT + r"reproduce\.py --next.*": check_next,
    SCRIPT + r"(paper_figures|cliff_figure|images_figure|comparison_figure)\.py .*": check_figures,
    SCRIPT + r"draw_mechanism\.py": check_mechanism,
    SCRIPT + r"plan_speed\.py .*": check_plan_speed,
    SCRIPT + r"readme_tables\.py": check_tables,
    SCRIPT + r"config_table\.py": check_config_table,
    SCRIPT + r"record_carla\.py .*": check_record_carla,
}
"""What checks a command, by a pattern that all of it matches."""

SHIPPED = {"run": check_shipped, "compare": check_compare, "cost": check_cost}
SHIPPED["scripts/yolo.py"] = check_yolo


def checks_of(command):
    """Return the checks whose pattern a command matches."""
    return [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, command)]

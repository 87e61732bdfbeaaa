"""What the commands on the pages must do: a check for each kind of command.

What every shipped configuration does is tested in tests/test_configs.py: a printed
`branchprune run` that is one of its entries is not run again, only compared with the page.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from pages import PAGES, ROOT, around, blocks, text

from branchprune.benchmarks import cost
from branchprune.cli import main
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.compare import config as comparison
from branchprune.experiments.jobs import Job
from branchprune.experiments.run.config import make_parser
from branchprune.models import VGG

sys.path.append(str(ROOT / "scripts"))
ENTRIES = {entry.command for entry in importlib.import_module("config_table").entries()}
sys.path.pop()

FRAMES = " --data.init_args.root FRAMES"
SAID = {  # command on README.md: what stands beside it, method, preset, algorithm
    "run configs/recipe.yaml": ("a teacher, Muon and mixup", "ours", "paper", "cut"),
    "run configs/own_model.yaml": ("your own model and data", "cut", "own", "cut"),
    "run configs/own_model.yaml --variant blend --prune.blend.mixing sample": (
        *("draw a path", "blended", "own", "blend"),
    ),
    "run configs/vgg16_cifar10.yaml": ("the paper", "blended", "paper", "blend"),
    "run configs/vgg16_cifar10.yaml --variant cpu": ("two cores", "blended", "cpu", "blend"),
    "run configs/autoencoder_carla.yaml" + FRAMES: (
        *("autoencoder", "one after the other", "paper", "blend"),
    ),
    "run configs/autoencoder_carla.yaml --variant cpu" + FRAMES: (
        *("two cores", "one after the other", "cpu", "blend"),
    ),
    "run configs/digits_unet.yaml --prune.blend.levels '[0.0]'": (
        *("make images", "blended", "own", "blend"),
    ),
    "run configs/digits_dcgan.yaml": ("one after the other", "blended", "own", "blend"),
    "run configs/digits.yaml": ("The demo", "blended", "own", "blend"),
}


@dataclass
class World:
    """Where a command is tried.

    Attributes:
        folder: A folder with the configurations and tiny data, the current one.
        jobs: What would have been run side by side.
        side_by_side: How many at a time.
        printed: Returns what was printed since.
    """

    folder: Path
    jobs: dict[str, Job]
    side_by_side: list[int]
    printed: Callable[[], str]


def parsed(command):
    """Return the configuration that a printed `branchprune run` stands for."""
    return make_parser().parse_args(files_as_options(shlex.split(command)[2:]))


def compare_with_page(command):
    """Compare a run with what README.md says beside its command."""
    said, method, preset, algorithm = SAID[command.removeprefix("branchprune ")]
    config = parsed(command)
    assert said in around("README.md", command), said
    assert (config.method, config.preset) == (method, preset)
    assert config.prune[algorithm] is not None and str(config.output).startswith("runs/")
    if FRAMES in command:
        assert config.data.init_args.root == "FRAMES"


def check_shipped(command, world):
    """A shipped configuration: tests/test_configs.py runs it."""
    assert command.removesuffix(FRAMES) in ENTRIES
    if command.removeprefix("branchprune ") in SAID:
        compare_with_page(command)


def make_demo(world):
    """Return the folder of the demo, run as it is printed but for an epoch a stage."""
    if not (world.folder / "runs/digits/result.json").exists():
        short = "--dense.epochs 1 --prune.blend.levels [0.0] --prune.blend.final_hold 1"
        assert main(["run", "configs/digits.yaml", *short.split()]) == 0
    return world.folder / "runs" / "digits"


def check_demo(command, world):
    """The demo: the files that the README lists, and a line with its method."""
    folder, page = make_demo(world), text("README.md")
    files = re.findall(r"`([\w.]+\.(?:html|json|yaml|safetensors))`(?=,| \|)", page)
    assert {*files} >= {"report.html", "result.json", "small.safetensors", "config.yaml"}
    assert all((folder / file).is_file() for file in files)
    assert {"dense", "prune"} <= {path.name for path in folder.iterdir() if path.is_dir()}
    [line] = (world.folder / "runs/results/digits.jsonl").read_text().splitlines()
    assert json.loads(line)["method"] == "blended"
    compare_with_page(command)


def check_repeated(command, world):
    """A stored configuration repeats its run."""
    before = json.loads((make_demo(world) / "result.json").read_text())
    assert main(shlex.split(command)[1:]) == 0
    again = json.loads((world.folder / "runs/again/result.json").read_text())
    assert again["test"] == before["test"]


def check_stored(command, world):
    """Any stored configuration has all that its bases and variants said."""
    make_demo(world)
    stored = yaml.safe_load((world.folder / "runs/digits/config.yaml").read_text())
    assert not {"base", "rows", "variants"} & {*stored}
    assert parsed(command.replace("runs/x/", "runs/digits/")).name == "digits"


def check_tensorboard(command, world):
    """TensorBoard finds the curves of the demo."""
    folder = world.folder / shlex.split(command)[-1]
    assert make_demo(world) == folder and [*folder.rglob("events.out.tfevents*")]
    subprocess.run([sys.executable, "-c", "import tensorboard.main"], check=True)


def check_run(command, world):
    """Any other run, with two batches an epoch: its options come to the stored configuration."""
    given = shlex.split(command)[2:]
    small = "--fast true --overwrite true --precision 32-true --compile false"
    if "vgg16_cifar10" in command or "vgg7_16px" in command:
        small += " --model.init_args.stages [[16,16],[32,32]] --data.init_args.batch_size 8"
        small += " --data.init_args.root classes --data.init_args.limit_train 64"
    if "own_model" in command:
        small += " --model branchprune.models.VGG --model.init_args.stages [[16,16],[32,32]]"
        small += " --model.init_args.classes 10"
    assert main(["run", *given, *small.split()]) == 0
    folder = world.folder / parsed(command).output
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    for option, value in pairwise(given):
        if option.startswith("--prune."):
            found = stored
            for key in option.removeprefix("--").split("."):
                found = found[key]
            assert str(found) == value
    assert (folder / "report.html").exists()
    if command.removeprefix("branchprune ") in SAID:
        compare_with_page(command)


def check_own(command, world):
    """The configuration in the README, with a network and data that are there."""
    content = yaml.safe_load(blocks("README.md", "yaml")[0])
    arguments = {"stages": [[8, 8]], "classes": 10, "in_channels": 1}
    content["model"] = {"class_path": "branchprune.models.VGG", "init_args": arguments}
    content["data"] = {"class_path": "branchprune.data.Digits"}
    torch.save(VGG(**arguments).state_dict(), world.folder / "mine.pt")
    (world.folder / "my.yaml").write_text(yaml.safe_dump(content))
    assert main([*shlex.split(command)[1:], "--fast", "true"]) == 0
    stages = {path.name for path in (world.folder / "runs/mine").iterdir() if path.is_dir()}
    assert "finetune" in stages and "prune" not in stages


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


def check_figures(command, world):
    """A script that draws: its figures lie below runs/ unless they are recorded."""
    script, *options = shlex.split(command)[1:]
    module, output = importlib.import_module(Path(script).stem), world.folder / "runs/figures"
    name = Path(options[0]).stem if options and options[0].startswith("configs") else ""
    shown = ["--output", str(output / f"{name}.png" if name else output)]
    output.mkdir(parents=True, exist_ok=True)
    module.main([*options, *shown])
    assert [*output.glob("cliff*.png" if name else "fig4b*.png")]


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


def check_install(command, world):
    """Extras that are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"\[([\w,]+)\]", command)
    assert {*",".join(extras).split(",")} - {""} <= {*project["optional-dependencies"]}


def check_bench(command, world):
    """What blending costs, with images of one size and as few of them as can be."""
    assert main([*shlex.split(command)[1:], *"--batch_size 1 --repeats 2".split()]) == 0
    assert "dense / collapsed, inference" in " ".join(world.printed().split())


def check_verb(command, world):
    """A command as such, without its arguments."""
    assert main(["--help"]) == 0
    assert command.split()[1] in re.findall(r"^(\w+) +\w", world.printed(), re.M)


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
    r"branchprune run configs/vgg16_cifar10\.yaml configs/gpu\.yaml .*": check_run,
    r"branchprune run configs/compare/vgg7_16px\.yaml --variant .*": check_run,
    r"branchprune run runs/digits/config\.yaml --output runs/again": check_repeated,
    r"branchprune run runs/x/config\.yaml --output runs/again": check_stored,
    r"branchprune run my\.yaml": check_own,
    r"branchprune (run --help|--version|--help)": check_help,
    r"branchprune compare configs/compare/\w+\.yaml --jobs \d": check_compare,
    r"branchprune bench": check_bench,
    r"branchprune zoo( --\w+ \S+)*": check_zoo,
    r"branchprune (run|compare|cost)": check_verb,
    r"tensorboard --logdir runs/digits": check_tensorboard,
    r"make (demo|test|lint|help)": check_make,
    r"pytest tests/\w+( -q)?": check_pytest,
    r"pip install .*": check_install,
    SCRIPT + r"reproduce\.py .*": check_reproduce,
    SCRIPT + r"(paper_figures|cliff_figure)\.py .*": check_figures,
    SCRIPT + r"draw_mechanism\.py": check_mechanism,
    SCRIPT + r"plan_speed\.py .*": check_plan_speed,
    SCRIPT + r"readme_tables\.py": check_tables,
    SCRIPT + r"config_table\.py": check_config_table,
    SCRIPT + r"record_carla\.py .*": check_record_carla,
}
"""What checks a command, by a pattern that all of it matches."""

SHIPPED = {"run": check_shipped, "compare": check_compare, "cost": check_cost}


def checks_of(command):
    """Return the checks whose pattern a command matches."""
    return [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, command)]

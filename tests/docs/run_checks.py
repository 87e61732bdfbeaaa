"""What `branchprune run` on the pages must do.

What every shipped configuration does is tested in tests/test_configs.py: a printed
`branchprune run` that is one of its entries is not run again, only compared with the page.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torchvision
import yaml
from pages import ROOT, around, blocks, text
from safetensors.torch import load_file

from branchprune.cli import main
from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.jobs import Job
from branchprune.experiments.run.config import make_parser
from branchprune.models import VGG

sys.path.append(str(ROOT / "scripts"))
ENTRIES = {entry.command for entry in importlib.import_module("config_table").entries()}
sys.path.pop()

FRAMES = " --data.init_args.root FRAMES"
IMAGES = (
    "--variant images --model.init_args.num_classes 10 --data.init_args.root my_images "
    "--data.init_args.image_size 64 --data.init_args.mean '[0.485, 0.456, 0.406]' "
    "--data.init_args.std '[0.229, 0.224, 0.225]' --dense.epochs 0 --dense.checkpoint mine.pt"
)
SAID = {  # command on README.md: what stands beside it, method, preset, algorithm
    "run configs/recipe.yaml": ("a teacher, Muon and mixup", "ours", "paper", "cut"),
    "run configs/own_model.yaml": ("your own model and data", "cut", "own", "cut"),
    "run configs/own_model.yaml --variant blend --prune.blend.mixing sample": (
        *("draw a path", "blended", "own", "blend"),
    ),
    f"run configs/own_model.yaml {IMAGES}": ("images in a folder", "cut", "own", "cut"),
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


def check_images(command, world):
    """Trained weights and a folder of images: normalised as told, pruned from these weights."""
    dense = torchvision.models.resnet18(num_classes=10)
    torch.save(dense.state_dict(), world.folder / "mine.pt")
    small = (
        "--overwrite true --fast true --data.init_args.batch_size 8 --data.init_args.limit_train 32"
    )
    assert main([*shlex.split(command)[1:], *small.split()]) == 0
    folder = world.folder / "runs/own_model"
    weights = load_file(folder / "dense.safetensors")
    assert torch.equal(weights["conv1.weight"], dense.conv1.weight)
    trained = {path.parent.name for path in folder.glob("*/metrics.csv")}
    assert trained == {"finetune"}
    compare_with_page(command)


def write_own(world):
    """Write the configuration in the README, with a network and data that are there."""
    content = yaml.safe_load(blocks("README.md", "yaml")[0])
    arguments = {"stages": [[8, 8]], "classes": 10, "in_channels": 1}
    content["model"] = {"class_path": "branchprune.models.VGG", "init_args": arguments}
    content["data"] = {"class_path": "branchprune.data.Digits"}
    torch.save(VGG(**arguments).state_dict(), world.folder / "mine.pt")
    (world.folder / "my.yaml").write_text(yaml.safe_dump(content))


def check_own(command, world):
    """The configuration in the README."""
    write_own(world)
    assert main([*shlex.split(command)[1:], "--fast", "true"]) == 0
    stages = {path.name for path in (world.folder / "runs/mine").iterdir() if path.is_dir()}
    assert "finetune" in stages and "prune" not in stages


def write_net(world):
    """Write the file of a network for the field's methods, with one and data that are there."""
    [content] = [each for each in blocks("configs/README.md", "yaml") if "# net.yaml" in each]
    content = yaml.safe_load(content)
    own = {
        "class_path": "branchprune.models.VGG",
        "init_args": {"stages": [[8, 8]], "in_channels": 1},
    }
    content |= {"model": own, "data": {"class_path": "branchprune.data.Digits"}}
    (world.folder / "net.yaml").write_text(yaml.safe_dump(content))
    return content


def check_field_method(command, world):
    """A method of the field on a network of one's own, which comes behind its file."""
    content = write_net(world)
    assert main([*shlex.split(command)[1:], "--fast", "true"]) == 0
    folder = world.folder / parsed(command).output
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["model"]["class_path"] == content["model"]["class_path"]
    assert stored["prune"]["criterion"]["name"] in shlex.split(command)
    assert stored["prune"]["widths"]["keep"] == 0.375

"""`branchprune plan`: a model by its name or import path, as text and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import branchprune as bp
from branchprune.cli import main
from branchprune.cli.plan import example_of


class Net(nn.Module):
    """Images and words; the widths are arguments."""

    def __init__(self, width: int = 8, words: int = 4) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width + 6, 2)
        self.embed = nn.Embedding(words, 6)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        features = self.conv(image).relu().mean((2, 3))
        return self.head(torch.cat([features, self.embed(words).mean(1)], 1))


def made() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


network = made()
number = 3
EXAMPLES = ["--example", "1x3x9x9", "--example", "1x5:int64"]
HERE = "test_plan_command"


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plan", *args]) == 0
    return capsys.readouterr().out


def test_text_ends_with_the_plan_and_begins_with_the_tree(capsys: Any) -> None:
    text = run(capsys, f"{HERE}:Net", *EXAMPLES)
    tree, _, plan = text.partition("\n\n")
    assert [line.split()[0] for line in tree.splitlines()[2:]] == ["Net", "conv", "head", "embed"]
    torch.manual_seed(0)
    own = bp.plan(Net(), (torch.randn(1, 3, 9, 9), torch.zeros(1, 5, dtype=torch.int64)))
    assert plan == f"{own}\n"


@pytest.mark.parametrize("path", [f"{HERE}:made", f"{HERE}.made", f"{HERE}:network"])
def test_functions_and_models_by_path(path: str, capsys: Any) -> None:
    read = json.loads(run(capsys, path, "--example", "2x3x9x9", "--json"))
    plan = bp.plan(made(), torch.randn(2, 3, 9, 9))
    assert read["groups"] == json.loads(json.dumps(plan.as_dict()))["groups"]
    assert read["staying"][0]["reason"] == "outputs of the model"
    assert [row["name"] for row in read["modules"]] == ["", "0", "1", "2"]
    assert read["modules"][1]["width"] == [8, 4]
    assert read["modules"][0]["params"] == [plan.before.params, plan.after.params]


def test_options_are_those_of_plan(capsys: Any) -> None:
    options = ["--init_args.width", "64", "--init_args.words", "9", "--multiple_of", "16"]
    keep = ["--keep", '{"": 0.5, "conv": 0.25}', "--check", "--exclude", "embed", "--json"]
    with pytest.raises(AssertionError):
        run(capsys, f"{HERE}:Net", *EXAMPLES, *options, *keep)
    assert "exclude names 'embed', which makes no channels" in capsys.readouterr().err
    keep.remove("--exclude"), keep.remove("embed")
    read = json.loads(run(capsys, f"{HERE}:Net", *EXAMPLES, *options, *keep))
    assert [(g["name"], g["kept"]) for g in read["groups"] if not g["reason"]] == [("conv", 16)]
    inside = ["--inside", "1", "--opaque", "1.1", "--example", "1x3x9x9", "--depth", "0"]
    text = run(capsys, f"{HERE}:nested", *inside)
    assert text.splitlines()[2].startswith("1 (Sequential)") and "1.1 (ReLU): it is opaque" in text
    assert "  0 (Conv2d)" not in text


def nested() -> nn.Module:
    body = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)),
    )
    return nn.Sequential(nn.ReLU(), body)


def test_widths_are_chosen_for_a_target_on_images(tmp_path: Path, capsys: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 9, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    options = ["--images", str(tmp_path), "--mean", "[0.5, 0.5, 0.5]", "--std", "[0.2, 0.2, 0.2]"]
    text = run(capsys, f"{HERE}:network", "--target.macs", "0.5", *options)
    images = (torch.from_numpy(pixels).movedim(3, 1).div(255) - 0.5) / 0.2
    plan = bp.plan(network.eval(), images[:1], target={"macs": 0.5}, batches=[images])
    assert text.endswith(f"\n\n{plan}\n") and "error share" in text
    wide = run(capsys, f"{HERE}:network", "--target.macs", "0.7", "--floor", "0.6", *options)
    named = {"target": {"macs": 0.7}, "floor": 0.6}
    assert wide.endswith(f"\n\n{bp.plan(network.eval(), images[:1], batches=[images], **named)}\n")


def test_a_model_of_torchvision_by_name_has_an_example_of_its_own(capsys: Any) -> None:
    read = json.loads(run(capsys, "squeezenet1_1", "--json"))
    model = torchvision.models.squeezenet1_1()
    assert read["before"]["params"] == sum(p.numel() for p in model.parameters())
    assert read["modules"][0]["shape"] == [1, 1000]


def test_modules_in_the_folder_are_found(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_net.py").write_text(f"from {HERE} import made\n")
    assert "outputs of the model" in run(capsys, "my_net:made", "--example", "1x3x9x9")


BAD = {
    "no model": ([], "model"),
    "file of a YOLO": (["yolov8n.yaml"], "is a file, and a model is named: a YOLO as ultralytics/"),
    "file of weights": (["runs/best.pt"], "the import path of its class or of a function that"),
    "unknown name": (["resnet51"], "is not one of torchvision's; the nearest is 'resnet"),
    "unknown library": (["keras/resnet50"], "library 'keras', not one of torchvision, timm"),
    "library that is missing": (["timm/resnet50"], 'pip install "branchprune[zoo]"'),
    "unknown module": (["nowhere:Net"], "No module named 'nowhere'"),
    "module alone": (
        [HERE],
        f"or a function that makes the model, {HERE}:CLASS",
    ),
    "file of a module": (
        [f"{HERE}.py"],
        f"or a function that makes the model, {HERE}:CLASS",
    ),
    "unknown class": ([f"{HERE}:Nut"], "has no Nut; the nearest is Net"),
    "no function": ([f"{HERE}:number"], "is a int, not a class"),
    "makes no model": (["json:dumps", "--init_args.obj", "1"], "makes a str, not an nn.Module"),
    "wrong argument": ([f"{HERE}:Net", "--init_args.widht", "3"], "--init_args.NAME VALUE"),
    "argument of a name": (["resnet18", "--init_args.a", "3"], "cannot be built: TypeError"),
    "arguments of others": (
        ["ultralytics/yolov8n", "--init_args.a", "3"],
        "a model of torchvision",
    ),
    "no example": ([f"{HERE}:Net"], "--example 1x3x224x224"),
    "no shape": ([f"{HERE}:made", "--example", "1x3x"], "'1x3x') is no shape, such as"),
    "no dtype": ([f"{HERE}:made", "--example", "1x3:int65"], "no dtype of torch"),
    "no batch": ([f"{HERE}:made", "--example", "3x9x9"], "has no batch dimension"),
    "does not fit": ([f"{HERE}:made", "--example", "1x4x9x9"], "it fails at 0"),
    "keep": ([f"{HERE}:made", "--example", "1x3x9x9", "--keep", "2"], "keep (=2.0)"),
    "target without images": (
        [f"{HERE}:made", "--example", "1x3x9x9", "--target.macs", "0.5"],
        "target (={'macs': 0.5}): widths are chosen by how the output changes on some images",
    ),
    "images without target": (
        [f"{HERE}:made", "--images", "."],
        "images (='.') are there to choose widths on: give a target, --target.macs 0.5",
    ),
    "example beside images": (
        [f"{HERE}:made", "--images", ".", "--target.macs", "0.5", "--example", "1x3x9x9"],
        "example (='1x3x9x9'): an image of --images is the example: leave it out",
    ),
    "size without images": ([f"{HERE}:made", "--image_size", "0"], "image_size (=0) says how"),
    "mean without images": ([f"{HERE}:made", "--mean", "[0.5]"], "mean (=[0.5]) says how images"),
    "keep and target": (
        [f"{HERE}:made", "--keep", "0.5", "--target.macs", "0.5"],
        "keep (=0.5) and target (={'macs': 0.5}): give one",
    ),
    "auto without target": (
        [f"{HERE}:made", "--multiple_of", "auto", "--runtime", "pytorch"],
        "multiple_of (='auto') belongs to a target: give one, --target.macs 0.5",
    ),
    "latency without runtime": (
        [f"{HERE}:made", "--target.latency", "0.5"],
        "on the command line --runtime onnxruntime",
    ),
    "unknown option": ([f"{HERE}:made", "--kep", "2"], "--kep"),
}


def test_a_model_of_a_library_takes_arguments(capsys: Any) -> None:
    options = ["--init_args.num_classes", "7", "--json"]
    read = json.loads(run(capsys, "squeezenet1_1", *options))
    assert [row["width"] for row in read["modules"] if row["name"] == "classifier.1"] == [[7, 7]]


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_with_the_way_out(case: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    args, message = BAD[case]
    assert main(["plan", *args]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("branchprune: error: ") and message in line


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("1x3x4", (1, 3, 4), torch.float32),
        ("7", (7,), torch.float32),
        ("2x128:int64", (2, 128), torch.int64),
        ("2x3:float16", (2, 3), torch.float16),
        ("2x3:bool", (2, 3), torch.bool),
        ("2x3:complex64", (2, 3), torch.complex64),
    ],
)
def test_examples(text: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    example = example_of(text)
    assert (example.shape, example.dtype) == (shape, dtype)


def test_help_names_every_option(capsys: Any, monkeypatch: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "usage: branchprune plan" in text
    for option in ("example", "init_args", "keep", "exclude", "opaque", "inside", "depth", "json"):
        assert f"--{option}" in text

"""`branchprune compress`: a model by its import path, a folder of images, a file and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import vgg
from PIL import Image
from torch import nn

import branchprune as bp
from branchprune.artifacts.origin import Origin, read_origin
from branchprune.cli import main
from branchprune.models import VGG

HERE = "test_compress_command"


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return vgg(classes=classes)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


ARGUMENTS: dict[str, Any] = {"stages": [[8], [8]], "classes": 5}


def call(*args: object) -> int:
    return main(["compress", *map(str, args)])


NORMALISED = ("--image_size", 8, "--mean", "[0.5, 0.5, 0.5]", "--std", "[0.3, 0.3, 0.3]")


@pytest.mark.filterwarnings("default:images")  # the model is not trained
def test_it_writes_a_model_that_loads_and_its_card(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    torch.save(network().state_dict(), tmp_path / "mine.pt")
    output = tmp_path / "small.safetensors"
    options = ("--keep", 0.4, "--steps", 3, "--batch_size", 8, "--output", output, *NORMALISED)
    assert call(f"{HERE}:network", images, "--checkpoint", tmp_path / "mine.pt", *options) == 0
    said, warned = capsys.readouterr()
    assert warned.startswith("branchprune: warning: images") and warned.count("\n") == 1
    small = bp.load(network(), output)
    plan = bp.plan(network(), torch.randn(2, 3, 8, 8), 0.4)
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
    assert f"params: {plan.before.params:,} → {plan.after.params:,}" in said
    assert "on 2 held-out images the class is the same for " in said
    assert said.endswith(f"\n{output}\n{output.with_suffix('.md')}\n")
    phases = ["reading 20 images", "choosing channels and fitting", "learning"]
    assert said.splitlines()[: len(phases)] == phases and "step 3 of 3, loss" in said
    assert read_origin(output) == Origin(f"{HERE}:network", {})
    card = output.with_suffix(".md").read_text()
    assert f"| {plan.before.params:,} | {plan.after.params:,} |" in card
    assert "8x8" in card and "[0.5, 0.5, 0.5]" in card and "from 18 images" in card


@pytest.mark.filterwarnings("default:images")
def test_what_it_wrote_is_made_smaller_again(images: Path, tmp_path: Path, capsys: Any) -> None:
    bp.save(VGG(**ARGUMENTS), tmp_path / "first.safetensors", "branchprune.models.VGG", ARGUMENTS)
    options = ("--keep", 0.5, "--steps", 1, "--batch_size", 8, *NORMALISED)
    for source, made in (("first", "second"), ("second", "third")):
        files = [tmp_path / f"{name}.safetensors" for name in (source, made)]
        assert call(files[0], images, "--output", files[1], *options) == 0
        capsys.readouterr()
    third = bp.load(VGG(**ARGUMENTS), tmp_path / "third.safetensors")
    assert third.get_submodule("features.0").out_channels == 2
    assert read_origin(tmp_path / "third.safetensors") == Origin(
        "branchprune.models.VGG", ARGUMENTS
    )


def test_what_is_wrong_is_told_in_one_line_before_anything_runs(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    there = tmp_path / "there.safetensors"
    there.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    net = f"{HERE}:network"
    for args, said in (
        ((net, images, "--output", there), "exists"),
        ((net, images, "--output", tmp_path / "small.pt"), "must end in .safetensors"),
        ((net, images, "--output", tmp_path / "no" / "small.safetensors"), "there is no folder"),
        ((net, empty, "--output", tmp_path / "a.safetensors"), "has no image"),
        ((net, tmp_path / "none", "--output", tmp_path / "a.safetensors"), "none"),
        ((net, images, "--checkpoint", tmp_path / "none.pt"), "does not exist"),
        (
            (net, images, "--grey", "true", *NORMALISED, "--output", tmp_path / "a.safetensors"),
            "one",
        ),
        ((net, images, "--mean", "[1]", "--output", tmp_path / "a.safetensors"), "three finite"),
        (("resnet19", images, "--output", tmp_path / "a.safetensors"), "resnet18"),
        (
            ("resnet18", images, "--init_args.num_classes", 5),
            "of this one, --checkpoint",
        ),
        (("timm/resnet50.a1_in1k", images, "--init_args.num_classes", 5), "of this one"),
        (("torchvision/resnet18", images, "--init_args.num_classes", 5), "of this one"),
        ((net, images / "0.png", "--output", tmp_path / "a.safetensors"), "0.png is a file"),
        ((net, tmp_path / "none", "--minutes", -1), "minutes"),
        ((net, tmp_path / "none", "--keep", 2), "keep (=2"),
        ((net, tmp_path / "none", "--target.mac", 0.5), "target names 'mac'"),
        ((net, tmp_path / "none", "--target", "{macs: 0.5}", "--keep", 0.5), "give one"),
        ((net, images, "--target.latency_ms", 5), "latency_ms is measured in a runtime"),
        ((net, images, "--multiple_of", "auto"), "multiple_of (='auto') belongs to a target"),
        ((net, images, "--multiple_of", "some"), "multiple_of"),
        ((net, images, "--threads", 2), "threads (=2) are those of a runtime"),
        ((net, images, "--runtime", "tensorrt"), "onnxruntime"),
        (
            (net, images, "--runtime", "pytorch"),
            "runtime (='pytorch') is where a latency is measured: give --target.latency_ms",
        ),
    ):
        assert call(*args) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, error
    assert {*tmp_path.iterdir()} == {images, empty, there}

"""`branchprune sensitivity`: a model by its import path, a folder of images, a table and a plot."""

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
from branchprune.cli import main

NETWORK = "test_sensitivity_command:network"


def network() -> nn.Module:
    torch.manual_seed(3)
    return vgg()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.filterwarnings("default:images")
def test_images_of_another_kind_are_warned_of(images: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--output", str(tmp_path / "plot.png"))
    assert main(["sensitivity", f"{NETWORK}s_kin", str(images), *options]) == 0
    captured = capsys.readouterr()
    warned, *others = captured.err.splitlines()
    assert warned.startswith("branchprune: warning: images are not what 1 has seen: its inputs are")
    assert all(line.startswith("branchprune: warning: images") for line in others)
    assert "alone shrinks: the Kullback-Leibler divergence of the softmax, in nats" in captured.out


def networks_kin() -> nn.Module:
    """One whose first norm remembers other images."""
    model = network()
    norm = next(each for each in model.modules() if isinstance(each, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean += 9
    return model


def test_it_prints_what_is_measured_and_draws_it(images: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "plot.png"
    options = ("--exclude", "4", "--output", str(output))
    assert main(["sensitivity", NETWORK, str(images), *options]) == 0
    said = capsys.readouterr().out
    x = bp.read_folder(images)
    expected = bp.sensitivity(network().eval(), x[:1], [x], exclude=["4"])
    assert str(expected) in said and said.rstrip().endswith("plot.png")
    for share in (0.8, 0.6, 0.4, 0.2):
        plan = bp.plan(network().eval(), x[:1], target={"macs": share}, batches=[x], exclude=["4"])
        assert f"change of the output {plan.change:.3g}" in said
    pixels = np.asarray(Image.open(output).convert("RGB"))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 800 and len(np.unique(pixels)) > 20


def test_targets_that_cannot_be_reached_are_told_and_the_others_shown(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "plot.png"
    wide = [name for name, each in network().named_modules() if isinstance(each, nn.Conv2d)][1:]
    options = [part for name in wide for part in ("--exclude", name)]
    assert main(["sensitivity", NETWORK, str(images), *options, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.count("of the MACs: change") + said.count("cannot be reached") == 4
    assert "of the MACs: change" in said and "target macs (=0.2) cannot be reached" in said
    assert output.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--output", "plot.svg"), "must end in .png"),
        (("--exclude", "no"), "exclude names the layer 'no'"),
        (("--imagesize", "8"), "imagesize"),
    ],
)
def test_what_is_wrong_is_named(
    options: tuple[str, ...], said: str, images: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", NETWORK, str(images), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not [*tmp_path.glob("*.png")]

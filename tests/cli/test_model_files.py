"""Files as models: what is made of them alone, and what is refused, with what to write instead."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from models import vgg
from torch import nn

import branchprune as bp
from branchprune.artifacts.origin import Origin, read_origin
from branchprune.cli import main
from branchprune.cli.model_file import origin_of
from branchprune.models import VGG

HERE = "test_model_files"
EXAMPLE = ("--example", "2x3x8x8")
made = []
"""What `network` was called with."""


def network(classes: int = 5) -> nn.Module:
    made.append(classes)
    return vgg(classes=classes)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of a model that is smaller than its class makes it, which says what that is."""
    path = tmp_path / "it's small.safetensors"
    model = vgg(classes=7)
    narrow = bp.attach(model, bp.plan(model, torch.randn(2, 3, 8, 8), 0.5))
    narrow.alpha = 0.0
    bp.save(bp.collapse(narrow), path, f"{HERE}:network", {"classes": 7})
    return path


def planned(capsys: Any, *args: object) -> Any:
    assert main(["plan", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Any, *args: object) -> str:
    assert main(["plan", *map(str, args)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return str(line)


def test_an_import_path_in_a_file_is_not_followed_but_told(small: Path, capsys: Any) -> None:
    made.clear()
    line = refused(capsys, small, *EXAMPLE)
    assert not made
    written = line.partition("trust that, give ")[2].removesuffix(" instead")
    found = planned(capsys, *shlex.split(written), *EXAMPLE)  # as a shell reads it
    assert made == [7]
    assert found["before"]["params"] == sum(
        p.numel() for p in bp.load(vgg(classes=7), small).parameters()
    )


@pytest.mark.parametrize(
    ("made_by", "init_args"),
    [
        ("torchvision.models.squeezenet1_1", {"num_classes": 3}),
        ("torchvision.models:squeezenet1_1", {"num_classes": 3, "weights": None}),
        ("squeezenet1_1", {}),
        ("branchprune.models.VGG", {"widths": [[4], [8]], "num_classes": 3}),
        ("branchprune.models:VGG", {"stages": [[4], [8]]}),
    ],
)
def test_a_model_of_a_library_is_made_of_its_file_alone(
    made_by: str, init_args: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    bp.save(nn.Linear(2, 2), path, made_by, init_args)
    assert origin_of(path) == Origin(made_by, init_args)


@pytest.mark.parametrize(
    ("made_by", "init_args"),
    [
        ("torchvision.models.get_model", {"name": "resnet18"}),
        ("torchvision.datasets.utils.download_url", {"url": "x", "root": "y"}),
        ("torchvision.models.resnet18", {"weights": "DEFAULT"}),
        ("torchvision.models.resnet18", {"pretrained": True}),
        ("torchvision.models.resnet18", {"norm_layer": ["os.system"]}),
        ("torchvision.models._utils.resnet18", {}),
        ("branchprune.models.vgg.nn", {}),
        ("branchprune.models.nn", {}),
        ("branchprune.models:nn", {}),
        ("branchprune:models.nn.VGG", {}),
        ("os:system", {"command": "true"}),
        ("os.path/system", {}),
    ],
)
def test_what_could_run_something_is_not(
    made_by: str, init_args: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    bp.save(nn.Linear(2, 2), path, made_by, init_args)
    with pytest.raises(bp.PruneError, match=r"could run anything.*--checkpoint"):
        origin_of(path)


def test_names_of_timm_are_those_that_it_lists(tmp_path: Path, monkeypatch: Any) -> None:
    class Timm:
        def list_models(self) -> list[str]:
            return ["mixnet_s"]

    monkeypatch.setitem(sys.modules, "timm", Timm())
    path = tmp_path / "a.safetensors"
    for name, fine in (
        ("mixnet_s", True),
        ("mixnet_s.ft_in1k", True),
        ("hf_hub:a/mixnet_s", False),
        ("mixnet_s.hf-hub:a/b", False),
    ):
        bp.save(nn.Linear(2, 2), path, "timm.create_model", {"model_name": name, "num_classes": 3})
        if fine:
            assert origin_of(path)
        else:
            with pytest.raises(bp.PruneError, match="could run anything"):
                origin_of(path)


def test_a_smaller_model_of_torchvision_is_planned_from_its_file(
    tmp_path: Path, capsys: Any
) -> None:
    model, path = torchvision.models.squeezenet1_1(num_classes=3), tmp_path / "small.safetensors"
    blended = bp.attach(model, bp.plan(model, torch.randn(1, 3, 64, 64), 0.5))
    blended.alpha = 0.0
    small = bp.collapse(blended)
    bp.save(small, path, "torchvision.models.squeezenet1_1", {"num_classes": 3})
    found = planned(capsys, path, "--example", "1x3x64x64")
    assert found["before"]["params"] == sum(p.numel() for p in small.parameters())


def test_what_a_file_says_is_written_whole_or_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", nn.Linear(2, 2)
    bp.save(model, path, "a.b:Net", {"sizes": (1, 2), "name": "ä"})
    assert read_origin(path) == Origin("a.b:Net", {"sizes": [1, 2], "name": "ä"})
    torch.testing.assert_close(bp.load(nn.Linear(2, 2), path).weight, model.weight)
    bp.save(model, path)
    assert read_origin(path) is None
    for made_by, init_args, message in (
        ("rm -rf; x", {}, "must be a name"),
        (None, {"a": 1}, "give it, too"),
        ("a:B", {"act": nn.ReLU()}, "cannot be written"),
        ("a:B", {"sizes": {1: 2}}, "must be numbers, texts"),
    ):
        with pytest.raises(bp.PruneError, match=message):
            bp.save(model, path, made_by, init_args)  # type: ignore[arg-type]


def test_files_that_hold_no_origin_say_what_to_give(tmp_path: Path, capsys: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    bp.save(model, saved := tmp_path / "a.safetensors")
    torch.save(model.state_dict(), weights := tmp_path / "a.pt")
    assert f"give --checkpoint {saved}" in refused(capsys, saved)
    assert f"give --checkpoint {weights}" in refused(capsys, weights)
    assert "does not exist" in refused(capsys, tmp_path / "none.safetensors")
    assert "without init_args" in refused(capsys, saved, "--init_args.a", 3)
    assert "without checkpoint" in refused(capsys, saved, "--checkpoint", weights)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:The given buffer:UserWarning"
)
def test_models_and_programs_say_how_to_get_the_weights_out_of_them(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """What the message tells to write in Python makes a file of weights that is taken."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 3, 8, 8)
    model = vgg(classes=5).eval()
    torch.save(model, "whole.pt")
    torch.save({"epoch": 1, "ema": model}, "in_a_dict.pt")
    torch.export.save(torch.export.export(model, (x,)), "exported.pt2")
    torch.jit.save(torch.jit.trace(model, x), "script.pt")
    for file, what in (
        ("whole.pt", "a whole model"),
        ("in_a_dict.pt", "a whole model"),
        ("exported.pt2", "an exported program"),
        ("script.pt", "a TorchScript program"),
    ):
        line = refused(capsys, file, *EXAMPLE)
        assert what in line
        code = "torch.save(" + line.partition("torch.save(")[2].partition("'weights.pt')")[0]
        exec(f"{code}'weights.pt')", {"torch": torch})
        options = (f"{HERE}:network", "--checkpoint")
        assert what in refused(capsys, *options, file, *EXAMPLE)
        assert planned(capsys, *options, "weights.pt", *EXAMPLE)
        Path("weights.pt").unlink()


def test_of_a_folder_the_file_in_it_is_to_be_given(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"stages": [[8]]}
    for name in ("mine", "resnet18"):
        bp.save(VGG(**sizes), f"{name}/", "branchprune.models.VGG", sizes)
    for name in ("mine", "mine/", tmp_path / "mine"):
        line = refused(capsys, name, *EXAMPLE)
        assert "is a folder" in line
        assert planned(capsys, line.rpartition("give the file in it, ")[2], *EXAMPLE)
    parameters = sum(each.numel() for each in torchvision.models.resnet18().parameters())
    assert planned(capsys, "resnet18")["before"]["params"] == parameters  # a name comes first

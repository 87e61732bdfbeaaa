"""A file makes its model alone where that runs nothing of its author's, or what the user trusts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from models import vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.artifacts.library_models import model_of_library
from branchprune.artifacts.origin import Origin
from branchprune.benchmarks.zoo_models import torchvision_model
from branchprune.models import VGG

HERE = __name__
called: list[Any] = []


class Net(nn.Sequential):
    def __init__(self, width: int = 8) -> None:
        called.append(width)
        super().__init__(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 1))


def make(width: int) -> nn.Module:
    return Net(width)


ready = Net(6)


class NoDefault(nn.Linear):
    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 2)


def narrow(model: nn.Module, *shape: int) -> nn.Module:
    blended = bp.attach(model, bp.plan(model, torch.randn(1, *shape), 0.5))
    blended.alpha = 0.0
    return bp.collapse(blended).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize(
    ("made_by", "init_args"),
    [
        ("squeezenet1_1", {"num_classes": 3}),
        ("torchvision/squeezenet1_1", {"num_classes": 3}),
        ("torchvision.models.squeezenet1_1", {"num_classes": 3}),
        ("torchvision.models:squeezenet1_1", {"num_classes": 3, "weights": None}),
    ],
)
def test_a_model_of_torchvision_comes_back_by_its_name(
    made_by: str, init_args: dict[str, Any], path: Path
) -> None:
    small = narrow(torchvision.models.squeezenet1_1(num_classes=3), 3, 64, 64)
    bp.save(small, path, made_by, init_args)
    drawn = torch.get_rng_state()
    loaded, x = bp.load(path), torch.randn(2, 3, 64, 64)
    torch.set_rng_state(drawn)
    assert torch.equal(torch.randn(2, 3, 64, 64), x)  # nobody else has drawn
    assert type(loaded) is type(small) and not loaded.training
    assert torch.equal(loaded(x), small(x))


def test_a_model_of_branchprune_comes_back_from_a_folder_too(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"stages": [[8], [8]], "classes": 5}
    small, x = narrow(VGG(**arguments), 3, 8, 8), torch.randn(2, 3, 8, 8)
    bp.save(small, f"{tmp_path}/small/", "branchprune.models.VGG", arguments)
    assert torch.equal(bp.load(tmp_path / "small")(x), small(x))
    assert torch.equal(bp.load(VGG(**arguments).eval(), f"{tmp_path}/small")(x), small(x))


def test_a_model_of_timm_comes_back_by_its_name(path: Path, monkeypatch: Any) -> None:
    class Timm:
        def list_models(self) -> list[str]:
            return ["net"]

        def create_model(self, name: str, width: int) -> nn.Module:
            return Net(width)

    monkeypatch.setitem(sys.modules, "timm", Timm())
    small, x = narrow(Net(8), 3, 8, 8), torch.randn(2, 3, 8, 8)
    bp.save(small, path, "timm/net", {"width": 8})
    assert torch.equal(bp.load(path)(x), small(x))
    bp.save(small, path, "timm/hf_hub:a/net", {"width": 8})
    with pytest.raises(bp.PruneError, match="is no model of timm"):
        bp.load(path)
    bp.save(small, path, "timm/net", {"width": 8, "pretrained": True})
    with pytest.raises(bp.PruneError, match="could ask for more"):
        bp.load(path)


@pytest.mark.parametrize(
    ("made_by", "init_args"),
    [(f"{HERE}:Net", {"width": 6}), (f"{HERE}.make", {"width": 6}), (f"{HERE}:ready", {})],
)
def test_an_import_path_is_followed_where_it_is_trusted_alone(
    made_by: str, init_args: dict[str, Any], path: Path
) -> None:
    small, x = narrow(Net(6), 3, 8, 8), torch.randn(2, 3, 8, 8)
    bp.save(small, path, made_by, init_args)
    called.clear()
    for trust in ((), "os", HERE[:-1], ("torch", f"{HERE}.inner")):
        message = rf"trust=.*'{HERE}'\]?\); or make .* bp\.load\(model, "
        with pytest.raises(bp.PruneError, match=message):
            bp.load(path, trust=trust)
    assert not called
    for trust in (HERE, ["os", HERE]):
        assert torch.equal(bp.load(path, trust=trust)(x), small(x))


def test_a_class_that_needs_no_arguments_is_found_by_its_own_path(path: Path) -> None:
    bp.save(small := narrow(Net(), 3, 8, 8), path)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(bp.PruneError, match=f"trust='{HERE}'"):
        bp.load(path)
    assert torch.equal(bp.load(path, trust=HERE)(x), small(x))
    bp.save(Net(12), path)
    with pytest.raises(bp.PruneError, match="another model"):
        bp.load(path, trust=HERE)
    bp.save(NoDefault(3), path)
    with pytest.raises(bp.PruneError, match=r"fails with {}: TypeError.*inputs.*: bp\.load"):
        bp.load(path, trust=HERE)


@pytest.mark.parametrize(
    "made_by", ["os:mkdir", "os.mkdir", f"{HERE}:os.mkdir", f"{HERE}:handed_on"]
)
@pytest.mark.parametrize("trust", [(), HERE, "torch"])
def test_what_a_trusted_package_hands_on_of_others_is_not_called(
    made_by: str, trust: Any, path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys.modules[HERE], "handed_on", os.mkdir, raising=False)
    bp.save(nn.Linear(2, 2), path, made_by, {"path": str(tmp_path / "pwned")})
    with pytest.raises(bp.PruneError, match=r"bp\.load\(model, "):
        bp.load(path, trust=trust)
    assert not (tmp_path / "pwned").exists()


def test_weights_from_elsewhere_are_not_asked_for(path: Path, monkeypatch: Any) -> None:
    asked: list[Any] = []
    for place in ("torch.hub", "torchvision.models._api"):
        monkeypatch.setattr(f"{place}.load_state_dict_from_url", lambda *a, **_: asked.append(a))
    for init_args in ({"weights": "DEFAULT"}, {"pretrained": True}):
        for name in ("resnet18", "torchvision.models.resnet18"):
            bp.save(nn.Linear(2, 2), path, name, init_args)
            with pytest.raises(bp.PruneError, match=r"bp\.load\(model, "):
                bp.load(path)
    assert not asked
    with torch.device("meta"):  # its backbone has weights, if nothing else is said
        for name in ("lraspp_mobilenet_v3_large", "torchvision.models.segmentation.fcn_resnet50"):
            model_of_library(Origin(name))
    assert not asked


@pytest.mark.parametrize(
    "name", ["vit_b_32", "vit_h_14", "resnet18", "s3d", "swin_t", "deeplabv3_resnet50"]
)
def test_a_name_stands_for_what_it_does_in_commands(name: str) -> None:
    with torch.device("meta"):
        found, wanted = model_of_library(Origin(name)), torchvision_model(name, None)[0]
    assert [(k, v.shape) for k, v in found.state_dict().items()] == [
        (k, v.shape) for k, v in wanted.state_dict().items()
    ]


def local() -> nn.Module:
    class Inner(nn.Linear):
        pass

    return Inner(2, 2)


@pytest.mark.parametrize(
    ("model", "made_by", "message"),
    [
        (nn.Linear(2, 2), None, "does not say what makes its Linear"),
        (local(), None, "does not say what makes its Inner"),
        (nn.Linear(2, 2), "no_such_package:Net", "No module named 'no_such_package'"),
        (nn.Linear(2, 2), f"{HERE}:Nett", "has no Nett; the nearest is Net"),
        (nn.Linear(2, 2), f"{HERE}:narrow", "fails with {}: TypeError"),
        (nn.Linear(2, 2), f"{HERE}:HERE", "which makes a|is a str|not callable|TypeError"),
        (nn.Linear(2, 2), "ultralytics/yolov8n", "of ultralytics, of which none"),
        (nn.Linear(2, 2), "resnet19", "no model of torchvision"),
    ],
)
def test_what_cannot_be_made_says_what_to_write(
    model: nn.Module, made_by: str | None, message: str, path: Path
) -> None:
    bp.save(model, path, made_by)
    with pytest.raises(bp.PruneError, match=rf"({message}).*bp\.load\(model, '{path}'\)") as caught:
        bp.load(path, trust=("no_such_package", HERE))
    assert "\n" not in str(caught.value)


def test_arguments_in_another_order_are_told(path: Path) -> None:
    bp.save(nn.Linear(2, 2), path)
    with pytest.raises(bp.PruneError, match="the model comes first"):
        bp.load(path, nn.Linear(2, 2))  # type: ignore[call-overload]
    with pytest.raises(bp.PruneError, match="path is missing"):
        bp.load(nn.Linear(2, 2))  # type: ignore[call-overload]
    assert isinstance(bp.load(model=nn.Linear(2, 2), path=path).weight, Tensor)


def test_a_model_that_was_made_alone_can_be_pruned_again(path: Path) -> None:
    bp.save(narrow(vgg(classes=5), 3, 8, 8), path, "models:vgg", {"classes": 5})
    again = narrow(bp.load(path, trust="models"), 3, 8, 8)
    bp.save(again, path)  # which still knows what makes it
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(bp.load(path, trust="models")(x), again(x))


@pytest.mark.parametrize("trust", [None, 5, [5], {"os"}])
def test_trust_that_names_no_package_is_refused(trust: Any, path: Path) -> None:
    bp.save(Net(), path, f"{HERE}:Net")
    with pytest.raises(bp.PruneError, match=r"trust .* must be the name of a package"):
        bp.load(path, trust=trust)

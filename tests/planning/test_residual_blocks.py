"""Residual blocks that are left out: found in any class, exact where they do nothing, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from models import Net, relative, resnet, scramble
from safetensors import safe_open
from torch import Tensor, nn

import branchprune as bp
from branchprune.artifacts.saved_file import read_header
from branchprune.cli import main
from branchprune.graph.shortcut import Shortcut
from branchprune.models import ResNet
from branchprune.planning.profiling import count_macs, count_params

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "count", "activation"),
    [("resnet18", 5, "ReLU"), ("mobilenet_v2", 10, "Identity"), ("densenet121", 0, "")],
)
def test_blocks_of_libraries_are_found(name: str, count: int, activation: str) -> None:
    found = bp.blocks(getattr(torchvision.models, name)(weights=None), X)
    assert len(found) == count and {each.activation for each in found} <= {activation}


def silenced(model: nn.Module, name: str) -> nn.Module:
    """Return a model whose block adds nothing to its shortcut: the last norm in it is 0."""
    model = scramble(model).eval()
    *_, norm = [m for m in model.get_submodule(name).modules() if isinstance(m, nn.BatchNorm2d)]
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ResNet(14, (8, 12, 16)), "stages.1.1"),
        (lambda: torchvision.models.resnet18(weights=None), "layer2.1"),
        (lambda: torchvision.models.mobilenet_v2(weights=None), "features.5"),
    ],
)
def test_a_block_that_adds_nothing_is_left_out_exactly(
    make: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    model = silenced(make(), name)
    shallow = bp.without(model, [name], X)
    assert relative(model(X), shallow(X)) < 1e-6
    [block] = [each for each in bp.blocks(model, X) if each.name == name]
    assert count_params(model) - count_params(shallow) == block.params > 0
    assert count_macs(model, X) - count_macs(shallow, X) == block.macs > 0
    bp.save(shallow, tmp_path / "shallow.safetensors")
    loaded = bp.load(make(), tmp_path / "shallow.safetensors").eval()
    assert torch.equal(loaded(X), shallow(X)) and isinstance(loaded.get_submodule(name), Shortcut)


def test_what_is_left_is_pruned_exactly_and_comes_back(tmp_path: Path) -> None:
    """Depth first, widths then, from one file."""
    model = scramble(ResNet(14, (8, 12, 16))).eval()
    shallow = bp.without(model, ["stages.0.1", "stages.2.1"], X)
    blended = bp.attach(shallow, bp.plan(shallow, X, keep=0.5))
    blended.alpha = 0.0
    small = bp.collapse(blended).eval()
    assert relative(blended.eval()(X), small(X)) < 1e-5
    made_by = "branchprune.models:ResNet", {"depth": 14, "widths": [8, 12, 16]}
    bp.save(small, tmp_path / "small.safetensors", *made_by)
    loaded = bp.load(tmp_path / "small.safetensors")
    assert torch.equal(loaded(X), small(X))
    bp.save(loaded, tmp_path / "again.safetensors")
    for name in ("small", "again"):  # the dense model has all blocks
        header = read_header(tmp_path / f"{name}.safetensors")
        assert header["dense_params"] == str(count_params(model))
        assert header["params"] == str(count_params(small))
    again = bp.load(ResNet(14, (8, 12, 16)), tmp_path / "small.safetensors").eval()
    assert torch.equal(again(X), small(X))
    assert {each.name for each in bp.blocks(again, X)} == {"stages.0.0", "stages.1.1"}


def test_activations_modules_within_each_other_and_what_is_no_block() -> None:
    class Block(nn.Module):
        def __init__(self, act: nn.Module | None) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), act

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.conv(x)
            return y if self.act is None else self.act(y)

    class Gate(Block):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x * self.conv(x).sigmoid()
            return y

    layers = {
        "plain": Block(None),
        "silu": Block(nn.SiLU()),
        "stage": nn.Sequential(Block(nn.ReLU()), Block(nn.ReLU())),
        "gate": Gate(None),
        "own": Block(nn.Softmax(1)),
        "conv": nn.Conv2d(3, 3, 1),
        "prelu": nn.PReLU(3),
        "twice": Block(None),
    }

    def run(net: nn.Module, x: Tensor) -> Tensor:
        for name in (*layers, "twice"):
            x = net.get_submodule(name)(x)
        return x

    found = {each.name: each.activation for each in bp.blocks(Net(run, **layers), X)}
    expected = {"plain": "Identity", "silu": "SiLU", "stage.0": "ReLU", "stage.1": "ReLU"}
    assert found == expected


class Added(nn.Module):
    """What some layers make of the input is added to it; an activation may follow."""

    def __init__(self, layers: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.activation = layers, activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x + self.layers(x))
        return y


def test_slopes_that_are_learned_are_no_relu() -> None:
    conv = nn.Conv2d(3, 3, 1)
    assert not bp.blocks(nn.Sequential(Added(conv, nn.PReLU(3))), X)
    within = nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 3, 1))
    assert [each.name for each in bp.blocks(nn.Sequential(Added(within)), X)] == ["0"]


def test_a_block_stays_one_when_its_norms_have_seen_data() -> None:
    layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
    model = nn.Sequential(Added(nn.Sequential(*layers), nn.ReLU()))
    new = bp.blocks(model, X)
    model.train()(X)
    assert new == bp.blocks(model, X) and [each.activation for each in new] == ["ReLU"]


def test_blocks_come_in_the_order_in_which_they_are_called() -> None:
    layers = {name: Added(nn.Conv2d(3, 3, 1)) for name in ("first", "second")}
    net = Net(lambda m, x: m.first(m.second(x)), **layers)
    assert [each.name for each in bp.blocks(net, X)] == ["second", "first"]


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    model = ResNet(8, (8, 12, 16))
    with pytest.raises(bp.PruneError, match="names: 'stem' is no residual block; those are"):
        bp.without(model, ["stem"], X)
    with pytest.raises(bp.PruneError, match=r"names \(='stages.0.1'\) must be several paths, such"):
        bp.Shallowing(model, "stages.0.1", X)
    with pytest.raises(bp.PruneError, match="the model does not accept the example"):
        bp.blocks(model, X[:, :2])

    class Looks(nn.Module):
        """Asks a block for what is in it."""

        def __init__(self) -> None:
            super().__init__()
            self.net = resnet()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x)
            return y * self.net[3].conv1.out_channels  # type: ignore[union-attr, operator]

    with pytest.raises(bp.PruneError, match=r"does not run without net.3: .*conv1"):
        bp.without(Looks(), ["net.3"], X)


def test_a_file_of_another_depth_is_refused(tmp_path: Path, capsys: Any) -> None:
    model, path = ResNet(14, (8, 12, 16)), tmp_path / "shallow.safetensors"
    bp.save(bp.without(model, ["stages.1.1"], X), path)
    with pytest.raises(
        bp.PruneError, match=r"it leaves out stages\.1\.1, which is not in this one"
    ):
        bp.load(nn.Sequential(nn.Conv2d(3, 4, 1)), path)
    with pytest.raises(bp.PruneError, match="is of another model"):
        bp.load(ResNet(20, (8, 12, 16)), path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["shortcuts"] == '{"stages.1.1": "ReLU"}'
    assert main(["show", str(path)]) == 0
    assert "left out" in capsys.readouterr().out

"""Graphs in 8 bits for XNNPACK: what is rounded, and what is not, though torchao would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchprune.runtimes.captured import captured, quiet
from branchprune.runtimes.executorch_int8 import ExecuTorchInt8, rounded_products

IMAGES = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Computes what it is given of some layers, which can be seen in evaluation."""

    def __init__(self, computed: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.computed = computed
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, image: Tensor) -> Any:
        return self.computed(self, image)


def net(computed: Callable[[Any, Tensor], Any], **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    made = Net(computed, **layers)
    for layer in made.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_()
            assert layer.running_var is not None
            layer.running_var.uniform_(0.2, 3)
    return made.eval()


def rounding(model: nn.Module, images: Tensor = IMAGES) -> ExecuTorchInt8:
    return ExecuTorchInt8(captured(model, images[:1], "dynamic"), images[:1], images, "dynamic")


def error(program: Any, model: nn.Module, images: Tensor = IMAGES) -> float:
    with torch.no_grad():
        wanted, found = model(images[:7]), program.module()(images[:7])
    return float((found - wanted).norm() / wanted.norm())


def conv(**given: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **({"padding": 1} | given))


def tied(name: str) -> nn.Module:
    made = net(
        lambda m, x: m.again(m.norm(m.conv(x)).relu()),
        **{"conv": conv(), "again": conv(), "norm": nn.BatchNorm2d(4)},
    )
    setattr(made.get_submodule("again"), name, getattr(made.get_submodule("conv"), name))
    return made


def weightless(net: Any, x: Tensor) -> Tensor:
    weight = net.conv.weight
    read: Tensor = net.norm(F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True)))
    return read.relu()


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "behind a layer": (
        lambda: net(lambda m, x: m.norm(m.conv(x)).relu(), conv=conv(), norm=nn.BatchNorm2d(4)),
        (1, 1),
    ),
    "before a layer": (
        lambda: net(lambda m, x: m.conv(m.norm(x).relu()), conv=conv(), norm=nn.BatchNorm2d(4)),
        (1, 1),
    ),
    "of what others read, too": (
        lambda: net(
            lambda m, x: (y := m.conv(x)) + m.norm(y).relu(), conv=conv(), norm=nn.BatchNorm2d(4)
        ),
        (1, 1),
    ),
    "behind one call of a layer": (
        lambda: net(
            lambda m, x: m.conv(m.norm(m.conv(x)).relu()), conv=conv(), norm=nn.BatchNorm2d(4)
        ),
        (0, 2),
    ),
    "one for each call": (
        lambda: net(
            lambda m, x: m.more(m.conv(m.norm(m.conv(x)).relu())),
            conv=conv(),
            norm=nn.BatchNorm2d(4),
            more=nn.BatchNorm2d(4),
        ),
        (0, 2),
    ),
    "behind a tied weight": (
        lambda: tied("weight"),
        (0, 2),
    ),
    "behind a tied bias": (
        lambda: tied("bias"),
        (1, 2),
    ),
    "behind a computed weight": (
        lambda: net(weightless, conv=conv(), norm=nn.BatchNorm2d(4)),
        (1, 1),
    ),
    "behind groups, transposed": (
        lambda: net(
            lambda m, x: m.norm(m.up(x)).relu(),
            up=nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
            norm=nn.BatchNorm2d(6),
        ),
        (0, 1),
    ),
    "of the batch": (
        lambda: net(
            lambda m, x: m.norm(m.conv(x)).relu(),
            conv=conv(),
            norm=nn.BatchNorm2d(4, track_running_stats=False),
        ),
        (1, 1),
    ),
    "along another dimension": (
        lambda: net(
            lambda m, x: m.norm(m.fc(x.flatten(2))).relu(),
            fc=nn.Linear(64, 5),
            norm=nn.BatchNorm1d(4),
        ),
        (1, 1),
    ),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_stay_right_wherever_they_are(case: str, monkeypatch: Any) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("norms of trainings are searched for, which takes seconds")

    needless = "torchao.quantization.pt2e.qat_utils._get_aten_graph_module_for_pattern"
    with quiet():
        monkeypatch.setattr(needless, never)
    make, products = NORMS[case]
    model = make()
    int8 = rounding(model)
    some = int8.rounded()
    assert rounded_products(some) == products
    assert error(some, model) < 0.05
    assert error(int8.rounded(but=[*int8.nodes]), model) < 1e-6


def test_every_operator_stays_float32_where_it_shall() -> None:
    model = net(
        lambda m, x: (y := torch.cat([m.add(x) + x, x * 2], 1)) * y.sigmoid(),
        add=conv(padding="same"),
    )
    int8 = rounding(model)
    assert [*int8.nodes] == ["add", "add()", "mul()", "cat()", "mul_1()"]
    assert error(int8.rounded(but=[*int8.nodes]), model) == 0
    alone = {layer: error(int8.rounded(only=layer), model) for layer in int8.nodes}
    assert all(0 < each < 0.05 for each in alone.values()), alone


def test_what_has_no_whole_numbers_is_counted_and_left_alone() -> None:
    def computed(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.conv(x).flatten(2) @ m.flat(x.flatten(2)).transpose(1, 2)
        return result

    given = {"conv": conv(), "flat": nn.Conv1d(4, 4, 1, padding="same")}
    model = net(computed, **given)
    int8 = rounding(model)
    assert [*int8.nodes] == ["conv", "flat"]
    assert rounded_products(int8.rounded()) == (2, 3)
    assert error(int8.rounded(), model) < 0.05


def test_weights_that_are_computed_of_the_input_stay_float32() -> None:
    model = net(
        lambda m, x: F.linear(m.first(x.flatten(1)), m.second(x.flatten(1)).mean(0, keepdim=True)),
        first=nn.Linear(256, 4),
        second=nn.Linear(256, 4),
    )
    int8 = rounding(model)
    assert [*int8.nodes] == ["first", "second"]


def test_whole_numbers_are_joined_as_they_are() -> None:
    model = net(
        lambda m, x: m.conv(x).mean((2, 3)) + torch.cat([torch.arange(3), torch.arange(1)]),
        conv=conv(),
    )
    assert error(rounding(model).rounded(), model) < 0.05


def test_a_weight_without_a_layer_is_no_other_than_one_that_is_called_twice() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
            self.twice = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

        def forward(self, image: Tensor) -> Tensor:
            x = F.conv2d(F.conv2d(image, self.twice), self.twice)
            return F.conv2d(x, self.once)

    torch.manual_seed(0)
    int8 = rounding(Functional().eval())
    assert [*int8.nodes] == ["once"] and rounded_products(int8.rounded()) == (1, 3)


def test_small_weights_have_as_many_levels_as_large_ones() -> None:
    model = net(lambda m, x: m.conv(100 * x), conv=conv(bias=False))
    wide = error(rounding(model).rounded(only="conv"), model)
    with torch.no_grad():
        model.get_parameter("conv.weight").mul_(0.01)
    assert error(rounding(model).rounded(only="conv"), model) == pytest.approx(wide, rel=0.1)

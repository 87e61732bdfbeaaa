"""Grouped layers whose blocks hold channels of several layers, or parts of one layer's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, matrix, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.path_sampling import Mixing

SHAPE = (3, 3, 6, 6)


def image(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs: int, outputs: int, groups: int = 1, kernel: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, groups=groups, padding=kernel // 2)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


def unit(m: Any, x: Tensor) -> Tensor:
    """A ShuffleNet with two units: the first beside its pooled input, the second added to its."""
    x = m.a(x)
    x = torch.cat([m.c(m.d(shuffled(m.b(x), 2))), F.avg_pool2d(x, 3, 1, 1)], 1)
    return x + m.g(m.f(shuffled(m.e(x), 2)))


UNITS = {
    "a": lambda: conv(3, 8),
    "b": lambda: conv(8, 8, 2),
    "d": lambda: conv(8, 8, 8, 3),
    "c": lambda: conv(8, 16, 2),
    "e": lambda: conv(24, 12, 2),
    "f": lambda: conv(12, 12, 12, 3),
    "g": lambda: conv(12, 24, 2),
}

Row = tuple[Callable[..., Tensor], dict[str, Callable[[], nn.Module]], int, list[int]]
"""What to run, its layers, the channels of the result, and the widths of all groups."""

NETWORKS: dict[str, Row] = {
    "chunk between blocks": (
        lambda m, x: torch.mul(*m.g(m.a(x)).chunk(2, 1)),
        {"a": lambda: conv(3, 8), "g": lambda: conv(8, 16, 4)},
        8,
        [8, 8],
    ),
    "chunk within a block": (
        lambda m, x: torch.mul(*m.g(m.a(x)).chunk(2, 1)),
        {"a": lambda: conv(3, 6), "g": lambda: conv(6, 36, 3)},
        18,
        [6, 6],
    ),
    "gated linear unit": (
        lambda m, x: F.glu(m.g(m.a(x)), 1),
        {"a": lambda: conv(3, 8), "g": lambda: conv(8, 16, 2)},
        8,
        [8, 8],
    ),
    "shuffle of as many parts as blocks": (
        lambda m, x: m.b(shuffled(m.g(m.a(x)), 2)),
        {"a": lambda: conv(3, 8), "g": lambda: conv(8, 16, 2), "b": lambda: conv(16, 8, 2)},
        8,
        [8, 8, 8],
    ),
    "shuffle of more parts than blocks": (
        lambda m, x: m.b(shuffled(m.g(m.a(x)), 4)),
        {"a": lambda: conv(3, 8), "g": lambda: conv(8, 16, 2), "b": lambda: conv(16, 8, 2)},
        8,
        [8, 4, 8],
    ),
    "shuffle of fewer parts than blocks": (
        lambda m, x: m.b(shuffled(m.g(m.a(x)), 2)),
        {"a": lambda: conv(3, 8), "g": lambda: conv(8, 16, 4), "b": lambda: conv(16, 8, 4)},
        8,
        [8, 8, 8],
    ),
    "shuffle of three parts before two blocks": (
        lambda m, x: m.b(F.channel_shuffle(m.g(m.a(x)), 3)),
        {"a": lambda: conv(3, 6), "g": lambda: conv(6, 12, 3), "b": lambda: conv(12, 8, 2)},
        8,
        [6, 2, 8],
    ),
    "two layers in two blocks": (
        lambda m, x: m.g(torch.cat([m.a(x), m.b(x)], 1)),
        {"a": lambda: conv(3, 8), "b": lambda: conv(3, 8), "g": lambda: conv(16, 8, 2)},
        8,
        [8, 8],
    ),
    "a layer in one and a half blocks": (
        lambda m, x: m.g(torch.cat([m.a(x), m.b(x)], 1)),
        {"a": lambda: conv(3, 12), "b": lambda: conv(3, 4), "g": lambda: conv(16, 8, 2)},
        8,
        [4, 4, 8],
    ),
    "blocks in other blocks, and a layer": (
        lambda m, x: m.g(torch.cat([m.c(m.a(x)), m.b(x)], 1)),
        {
            "a": lambda: conv(3, 8),
            "b": lambda: conv(3, 8),
            "c": lambda: conv(8, 24, 2),
            "g": lambda: conv(32, 8, 2),
        },
        8,
        [4, 4, 8, 8],
    ),
    "half of the blocks plus two layers": (
        lambda m, x: torch.mul(*m.g(m.a(x)).chunk(2, 1)) + torch.cat([m.b(x), m.c(x)], 1),
        {
            "a": lambda: conv(3, 8),
            "b": lambda: conv(3, 4),
            "c": lambda: conv(3, 12),
            "g": lambda: conv(8, 32, 4),
        },
        16,
        [4, 4, 8],
    ),
    "transposed convolution of two layers": (
        lambda m, x: m.g(torch.cat([m.a(x), m.b(x)], 1)),
        {
            "a": lambda: conv(3, 12),
            "b": lambda: conv(3, 4),
            "g": lambda: nn.ConvTranspose2d(16, 8, 3, groups=2),
        },
        8,
        [4, 4, 8],
    ),
    "grouped convolution plus two layers": (
        lambda m, x: torch.cat([m.a(x), m.b(x)], 1) + m.g(m.d(x)),
        {
            "a": lambda: conv(3, 4),
            "b": lambda: conv(3, 12),
            "d": lambda: conv(3, 8),
            "g": lambda: conv(8, 16, 2),
        },
        16,
        [4, 4, 8],
    ),
    "channels of four entries": (
        lambda m, x: m.g(torch.cat([F.pixel_unshuffle(m.a(x), 2), F.avg_pool2d(m.b(x), 2)], 1)),
        {"a": lambda: conv(3, 8), "b": lambda: conv(3, 16), "g": lambda: conv(48, 12, 3)},
        12,
        [4, 12],
    ),
    "blocks of channels of four entries": (
        lambda m, x: m.g(F.pixel_unshuffle(m.a(x), 2)),
        {"a": lambda: conv(3, 8), "g": lambda: conv(32, 8, 4)},
        8,
        [8, 8],
    ),
    "units": (unit, UNITS, 24, [4, 4, 6]),
}


def network(name: str) -> nn.Module:
    run, layers, width, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = Net(lambda m, x: m.head(run(m, x)), **{k: make() for k, make in layers.items()})
    model.head = nn.Conv2d(width, 3, 1)
    return scramble(model.double().eval())


def scrambled(model: nn.Module, init: Any = "l1", keep: float = 0.5, **options: Any) -> bp.Blended:
    blended = bp.attach(model, bp.plan(model, image(), keep), init, **options)
    scramble(blended, seed=3)
    blended.alpha = 0
    return blended


def check(blended: bp.Blended) -> nn.Module:
    """Compare what was collapsed, in both modes, with wide layers between dense matrices."""
    small, other = bp.collapse(blended), spelled_out(blended)
    for training in (False, True):
        with torch.no_grad():
            expected = copy.deepcopy(other).train(training)(image(1))
            assert relative(expected, copy.deepcopy(small).train(training)(image(1))) < 1e-10
            assert relative(expected, copy.deepcopy(blended).train(training)(image(1))) < 1e-10
    return small


@pytest.mark.parametrize("name", NETWORKS)
def test_all_shrinks_and_is_exact(name: str) -> None:
    model = network(name)
    blended = scrambled(model, "random")
    groups = blended.plan.groups
    assert [group.name for group in groups if not group.pruned] == ["head"]
    assert sorted(g.width for g in groups if g.pruned) == sorted(NETWORKS[name][3])
    small = check(blended)
    for wide, narrow in zip(model.parameters(), small.parameters(), strict=True):
        assert narrow.numel() < wide.numel() or wide.numel() == 3
    assert small.head.in_channels == model.head.in_channels // 2


def test_whole_blocks_are_chosen_from_one_by_one() -> None:
    plan = bp.plan(network("chunk between blocks"), image(), 0.7)
    found = [(g.width, g.blocks) for g in plan.structure.groups]
    assert found == [(8, 4), (8, 2), (3, 1)]
    assert [g.kept for g in plan.groups] == [4, 6, 3]


@pytest.mark.parametrize(
    "name",
    [
        "a layer in one and a half blocks",
        "blocks in other blocks, and a layer",
        "half of the blocks plus two layers",
        "units",
    ],
)
def test_any_group_alone_is_exact(name: str) -> None:
    """Blocks keep as many channels as each other whatever the groups keep."""
    blended = scrambled(network(name))
    for group in blended.alpha:
        blended.alpha = {**dict.fromkeys(blended.alpha, 1), group: 0}
        try:
            small = bp.collapse(blended)
        except bp.PruneError as error:
            assert "meet in" in str(error)  # of a norm behind several layers
            continue
        with torch.no_grad():
            assert relative(blended(image(1)), small(image(1))) < 1e-10


@pytest.mark.parametrize("init", ["reconstruction", "taylor"])
def test_the_start_is_a_selection(init: str) -> None:
    model = network("units")
    model(image()).square().sum().backward()
    blended = bp.attach(model, bp.plan(model, image()), init, batches=[image()])
    for layer in ("b", "c", "e", "g"):
        selection = matrix(blended.reduce.get_submodule(f"{layer}.0"))
        assert bool((selection.sum(1) == 1).all()) and selection.unique().tolist() == [0, 1]
    blended.alpha = 0
    check(blended)


def test_the_start_behind_a_shuffle_is_the_wide_model_with_channels_of_zeros() -> None:
    """Both of each pair are scored alike, so that the narrow shuffle moves as the wide one does."""
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, groups=2), nn.ChannelShuffle(2)]
    layers += [nn.Conv2d(16, 8, 3, groups=2), nn.Conv2d(8, 3, 1)]
    model = scramble(nn.Sequential(*layers).double().eval())
    nn.init.zeros_(model[1].bias)
    plan = bp.plan(model, image(), keep={"1": 0.5})
    blended = bp.attach(model, plan, init=lambda g: torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0]))
    kept = matrix(blended.reduce.get_submodule("1")).argmax(1).tolist()
    assert kept == [0, 3, 4, 6, 8, 11, 12, 14]
    wide = copy.deepcopy(model)
    gone = [channel for channel in range(16) if channel not in kept]
    with torch.no_grad():
        wide[1].weight[gone] = 0
        blended.alpha = 0
        assert relative(wide(image(1)), blended(image(1))) < 1e-12
        assert relative(wide(image(1)), bp.collapse(blended)(image(1))) < 1e-12


def test_fitting_finds_channels_that_follow_from_others() -> None:
    """Half of the channels of each block are sums of the others: nothing is lost."""

    def run(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.g(torch.cat([m.a(x), m.b(x)], 1))
        return y

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 2, 1), "g": nn.Conv2d(8, 4, 3, groups=2)}
    model = Net(run, **layers).double().eval()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[1::2] = 2 * layer.weight[::2]
            layer.bias[1::2] = 2 * layer.bias[::2]
    plan = bp.plan(model, image())
    blended = bp.attach(model, plan, init=lambda g: torch.arange(float(g.width)) % 2)
    fitted = bp.fit_expand(blended, [image()], ridge=1e-12)
    fitted.alpha = 0
    assert relative(model(image(1)), bp.collapse(fitted)(image(1))) < 1e-5


@pytest.mark.parametrize(("mixing", "matching"), [("sample", 0.0), ("sum", 1.0)])
def test_training(mixing: Mixing, matching: float) -> None:
    model = network("units")
    blended = bp.attach(model, bp.plan(model, image()), mixing=mixing, matching=matching)
    optimizer = torch.optim.SGD(blended.parameters(), 1e-3)
    blended.train().alpha = 0.5
    for seed in range(2):
        optimizer.zero_grad()
        blended(image(seed)).square().mean().backward()
        assert all(p.grad is not None for p in blended.expand.parameters())
        optimizer.step()
    blended.eval().alpha = 0
    check(blended)


def test_saved_and_pruned_once_more(tmp_path: Path) -> None:
    model = network("units")
    small = check(scrambled(model))
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(network("units"), tmp_path / "small.safetensors")
    assert torch.equal(loaded(image(1)), small(image(1)))
    plan = bp.plan(loaded, image(), {"b": 0.5, "e": 0.5})
    blended = bp.attach(loaded, plan)
    scramble(blended, seed=4)
    blended.alpha = 0
    assert check(blended).e[0].out_channels == 4


def test_what_stands_beside_channels_that_stay_stays() -> None:
    def run(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        a = m.a(x)
        return a, m.head(m.g(torch.cat([a, m.b(x)], 1)).relu())

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "g": nn.Conv2d(16, 8, 3, groups=2)}
    plan = bp.plan(Net(run, **layers, head=nn.Conv2d(8, 3, 1)), image().float())
    reasons = {group.name: group.reason for group in plan.groups}
    output = "it is an output of the model"
    assert reasons == {
        "a": output,
        "b": f"each block of grouped convolution g keeps as many, and one holds channels that "
        f"stay ({output})",
        "g": None,
        "head": output,
    }

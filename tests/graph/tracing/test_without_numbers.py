"""What is told from shapes is what torch says itself, wherever it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from branchprune.graph.tracing.without_numbers import (
    ACTIVATIONS,
    ARITHMETIC,
    JOINS,
    function_output,
    layer_output,
)

SHAPES = ((2, 4, 5, 3), (1, 4, 1, 1), (4, 1, 1), (3,), (), (2, 4, 1, 3), (5, 2, 4, 5, 3))
TYPES = (torch.float32, torch.float64, torch.int64, torch.bool)
Made = Callable[[], Any]


def same(told: Any, run: Made) -> None:
    """Compare with torch: alike, or it fails and nothing was told."""
    if told is None:
        return
    real = run()
    assert (told.shape, told.dtype, told.device) == (real.shape, real.dtype, real.device)
    assert told.stride() == real.stride()


def meta(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("name", sorted(ARITHMETIC))
def test_arithmetic(name: str) -> None:
    function = getattr(torch, name)
    values = [meta(shape, dtype) for shape in SHAPES for dtype in TYPES]
    for x, y in itertools.product(values, [*values, 2, 0.5, True]):
        for pair in ((x, y), (y, x)):
            if isinstance(pair[0], Tensor):
                same(function_output(name, pair, {}), lambda pair=pair: function(*pair))
    assert function_output(name, (meta((2, 3)), meta((3,))), {}) is not None
    assert function_output(name, (meta((2, 3)), meta((3,))), {"alpha": 2}) is None


@pytest.mark.parametrize("name", sorted(JOINS))
def test_joins(name: str) -> None:
    function = getattr(torch, name)
    values = [meta(shape, dtype) for shape in SHAPES for dtype in TYPES]
    for x, y in itertools.product(values, values):
        for dim in (-3, -1, 0, 1, 3):
            same(function_output(name, ((x, y), dim), {}), lambda a=(x, y), d=dim: function(a, d))
    last = meta((2, 4, 5, 3)).to(memory_format=torch.channels_last)
    same(function_output(name, ([last, last],), {"dim": 1}), lambda: torch.cat([last, last], 1))
    assert function_output(name, ([meta((2, 3)), meta((1, 3))],), {}).shape == (3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS - {"leakyrelu"}))
def test_activations(name: str) -> None:
    function = getattr(F, name)
    for shape, dtype in itertools.product(SHAPES, TYPES):
        x = meta(shape, dtype)
        same(function_output(name, (x,), {}), lambda x=x: function(x))
    last = meta((2, 4, 5, 3)).to(memory_format=torch.channels_last)
    same(function_output(name, (last,), {}), lambda: function(last))
    assert function_output(name, (meta((2, 3)),), {}) is not None
    assert function_output(name, (meta((2, 3)),), {"inplace": True}) is None
    assert function_output(name, (torch.ones(2, 3),), {}) is None


LAYERS = (
    *(nn.ReLU(), nn.ReLU6(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish()),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.LeakyReLU(), nn.Softplus()),
    *(nn.Sigmoid(), nn.Tanh(), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.LayerNorm([4, 4])),
    *(nn.Linear(4, 3), nn.Linear(5, 3), nn.BatchNorm2d(5), nn.LayerNorm(5)),
)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers(layer: nn.Module) -> None:
    layer = layer.to("meta").eval()
    x = meta((2, 4, 4, 4))
    told = layer_output(layer, (x,), {})
    same(told, lambda: layer(x))
    assert (told is None) == ("5" in str(layer).split("eps")[0])
    hooked = layer.register_forward_hook(lambda *_: None)
    assert layer_output(layer, (x,), {}) is None
    hooked.remove()


def test_a_layer_that_works_in_place_changes_its_input() -> None:
    x = meta((2, 4, 4, 4))
    before = x._version
    assert layer_output(nn.ReLU(inplace=True), (x,), {}) is x
    assert x._version > before

"""Criteria that Torch-Pruning has, too, keep the channels that it keeps.

Of a group it counts the layers that read the channels as well, so the first layer of each is
compared (`group_reduction="first"`), in nets without norms and biases, which ours counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from models import scramble
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import branchprune as bp

GENERATOR = torch.Generator().manual_seed(6)
X = torch.randn(1, 3, 8, 8, generator=GENERATOR)
Y = torch.tensor([2])
FIRST = {"group_reduction": "first", "normalizer": None}


def plain() -> nn.Sequential:
    return scramble(
        nn.Sequential(
            *(nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 12, 3, bias=False)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
        )
    ).eval()


def normed() -> nn.Sequential:
    layers = [*plain()]
    layers.insert(1, nn.BatchNorm2d(16))
    layers.insert(4, nn.BatchNorm2d(12))
    return scramble(nn.Sequential(*layers)).eval()


def positive() -> nn.Sequential:
    """Torch-Pruning compares absolute weights where filters are replaced by their neighbours."""
    model = plain()
    for parameter in model.parameters():
        parameter.data.abs_()
    return model


def loss(model: nn.Module) -> Tensor:
    return cross_entropy(model(X), Y)


def fisher(model: nn.Module) -> Any:
    return bp.fisher(model, [loss(model)])


def hessian(model: nn.Module) -> Any:
    """Of one example: of several its `accumulate_grad` keeps the last alone."""
    found = tp.importance.GroupHessianImportance(**FIRST)
    loss(model).backward()  # type: ignore[no-untyped-call]
    found.accumulate_grad(model)
    return found


def taylor(model: nn.Module) -> str:
    loss(model).backward()  # type: ignore[no-untyped-call]
    return "taylor"


CASES: dict[str, tuple[Callable[[], nn.Sequential], Any, Any]] = {
    "l1": (plain, lambda m: "l1", lambda m: tp.importance.GroupMagnitudeImportance(p=1, **FIRST)),
    "l2": (plain, lambda m: "l2", lambda m: tp.importance.GroupMagnitudeImportance(p=2, **FIRST)),
    "bn_scale": (normed, lambda m: "bn_scale", lambda m: tp.importance.BNScaleImportance()),
    "geometric_median": (
        positive,
        lambda m: "geometric_median",
        lambda m: tp.importance.FPGMImportance(p=1, **FIRST),
    ),
    "taylor": (
        plain,
        taylor,
        lambda m: tp.importance.GroupTaylorImportance(multivariable=True, **FIRST),
    ),
    "fisher": (plain, fisher, hessian),
}


@pytest.mark.parametrize("name", CASES)
def test_both_keep_the_same_channels(name: str) -> None:
    make, ours, theirs = CASES[name]
    model = make()
    init, importance = ours(model), theirs(model)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=X)
    blended = bp.attach(model, bp.plan(model, X, keep=0.5), init)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        conv = model.get_submodule(layer)
        group = graph.get_pruning_group(
            conv, tp.prune_conv_out_channels, idxs=[*range(len(conv.weight))]
        )  # type: ignore[arg-type]
        scores = importance(group)
        expected = scores.topk(len(scores) // 2).indices
        chosen = blended.reduce.get_submodule(layer).weights[0].argmax(1)
        assert sorted(chosen.tolist()) == sorted(expected.tolist())

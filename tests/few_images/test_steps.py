"""What steps are made of: optimizers, looks of the dense model, blended steps before them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.blended import Blended
from branchprune.few_images.blended_start import blended_start, robust_first
from branchprune.few_images.learning import Learning
from branchprune.few_images.looks import looks
from branchprune.few_images.optimizers import optimizer
from branchprune.few_images.start import fitted_start
from branchprune.models import VGG


def test_sgd_falls_twice_as_in_mir_and_the_others_make_a_cycle() -> None:
    rates: dict[str, list[float]] = {}
    for name in ("sgd", "adamw", "muon"):
        weight = nn.Parameter(torch.ones(2, 2))
        moving, schedule = optimizer(name, [weight], 0.1, 0.0, 10)  # type: ignore[arg-type]
        weight.grad = torch.ones(2, 2)
        for _ in range(10):
            rates.setdefault(name, []).append(moving.param_groups[0]["lr"])
            moving.step()
            schedule.step()
    assert rates["sgd"] == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    assert rates["adamw"] == rates["muon"] and rates["adamw"][2] == max(rates["adamw"]) == 0.1


@pytest.mark.parametrize("each", [1, 3])
def test_a_look_serves_for_some_steps(each: int) -> None:
    dense = nn.Linear(4, 2)
    calls: list[Tensor] = []
    dense.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    new = (torch.full((5, 4), float(i)) for i in itertools.count())
    read: dict[str, list[Tensor]] = {"": []}
    found = looks(dense, read, new, each, torch.float32, torch.Generator().manual_seed(0))
    seen = [*itertools.islice(found, 60)]
    assert len(calls) == 60 // each
    for look in seen:
        torch.testing.assert_close(look.outputs, dense(look.images))
    numbers = [int(look.images[0, 0]) for look in seen]
    assert numbers[::each] == [*range(60 // each)]
    behind = [i // each - number for i, number in enumerate(numbers)]
    assert min(behind) == 0 and max(behind) == (7 if each > 1 else 0)


def test_a_prefix_has_the_order_of_the_network() -> None:
    model, x = VGG([[8], [12]]).eval(), torch.randn(16, 3, 8, 8)
    blended = fitted_start(model, bp.plan(model, x[:2], 0.5), x)
    with pytest.raises(bp.PruneError, match=r"order \(='input first'\) goes with drawn='sample'"):
        blended_start(blended, model, x, Learning(2, 8), "prefix", "input first")


@pytest.mark.parametrize(
    ("drawn", "order"),
    [
        ("sample", "together"),
        ("prefix", "together"),
        ("sample", "input first"),
        ("sample", "robust first"),
    ],
)
def test_blended_steps_teach_the_branch_alone(drawn: Any, order: Any, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    model, x = VGG([[8, 8], [12]]).eval(), torch.randn(16, 3, 8, 8)
    blended = fitted_start(model, bp.plan(model, x[:2], 0.5), x)
    with torch.no_grad():
        for weight in blended.reduce.parameters():
            weight += 0.3 * torch.randn_like(weight)
        if order == "robust first":  # the first group is worst, and comes last
            blended.reduce.get_submodule("features.0").weights[0].normal_()
    states: list[tuple[float, ...]] = []
    before = Blended.program
    monkeypatch.setattr(
        Blended,
        "program",
        lambda self, *a, **k: states.append(tuple(self.alpha.values())) or before(self, *a, **k),
    )
    how = Learning(24, 8, 0.01, mixing_alpha=0.0)
    ranked = robust_first(blended, model, x, how) if order == "robust first" else order
    states.clear()
    found = blended_start(blended, model, x, how, drawn, ranked)
    inside = [state for state in states if len(state) == 3]
    if drawn == "prefix":
        assert {(1, 1, 0), (1, 0, 0), (0, 0, 0)} <= {*inside} <= {(1, 1, 0), (1, 0, 0), (0, 0, 0)}
    elif order == "together":
        assert {round(24 * state[0]) for state in inside} == {*range(24)}
    else:
        one, half = {(0.5, 1, 1), (0, 1, 1), (0, 0.5, 1), (0, 0, 1), (0, 0, 0.5)}, (0.5, 0, 0)
        assert one <= {*inside} if order == "input first" else half in inside
        assert ((0.5, 1, 1) in inside) != (half in inside)
    assert set(found.alpha.values()) == {0.0} and set(blended.alpha.values()) == {0.0}
    for key, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], value)
    assert all(p.requires_grad for p in found.model.parameters())
    assert not torch.equal(
        found.reduce.get_submodule("features.0").weights[0],
        blended.reduce.get_submodule("features.0").weights[0],
    )

    def error(branch: Blended) -> float:
        with branch.branch_only([x]), torch.no_grad():
            return float((branch.eval()(x) - model(x)).square().mean())

    assert error(found) < error(blended)

"""Blocks that are left out for a target, beside narrower channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import scramble
from torch import nn

import branchprune as bp
from branchprune.graph.shortcut import shortcuts
from branchprune.models import ResNet
from branchprune.planning.costs import Cost
from branchprune.planning.profiling import count_macs, count_params
from branchprune.targets.depth import ranked, shorten, shortened
from branchprune.targets.goal import as_amounts
from branchprune.targets.output_change import OutputChange

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDLE = ["stages.0.1", "stages.2.1"]


def network() -> ResNet:
    """A net of whose blocks two hardly add anything."""
    model: ResNet = scramble(ResNet(14, (6, 8, 10))).eval()
    for name in IDLE:
        *_, norm = [m for m in model.get_submodule(name).modules() if isinstance(m, nn.BatchNorm2d)]
        with torch.no_grad():
            norm.weight *= 1e-3
            norm.bias *= 1e-3
    return model


def test_blocks_that_add_nothing_go_first() -> None:
    model = network()
    structure = bp.plan(model, X[:1]).structure
    found = ranked(model, structure, bp.blocks(model, X[:1]), [X])
    assert {each.name for each in found[:2]} == {*IDLE} and len(found) == 4


def test_shares_are_those_of_the_dense_model() -> None:
    model, target = network(), {"macs": 0.6, "params": 0.7}
    found = shorten(model, X[:1], target=target, batches=[X])
    count = {"macs": lambda m: count_macs(m, X[:1]), "params": count_params}
    blended = bp.attach(found.model, found.plan, "reconstruction", batches=[X])
    blended.alpha = 0.0
    small = bp.collapse(blended)
    used = [count[what](small) / (share * count[what](model)) for what, share in target.items()]
    assert 0.9 < max(used) <= 1


def test_a_criterion_of_the_whole_model_chooses_channels_of_what_is_left() -> None:
    model = network()
    losses = (F.cross_entropy(model(x), torch.arange(8)) for x in X.split(8))
    criterion = bp.fisher(model, losses)
    found = shorten(model, X[:1], target={"macs": 0.5}, batches=[X], criterion=criterion)
    assert {*IDLE} & {*found.left_out}
    blended = bp.attach(found.model, found.plan, criterion)
    blended.alpha = 0.0
    assert count_macs(bp.collapse(blended), X[:1]) <= 0.5 * count_macs(model, X[:1])


def test_shares_become_amounts_and_amounts_stay() -> None:
    dense = Cost(channels=10, params=200, macs=3000)
    target = {"macs": 0.5, "params": 80, "latency_ms": 0.2, "memory": 1e6}
    expected = {"macs": 1500, "params": 80, "latency_ms": 0.2, "memory": 1e6}
    assert as_amounts(target, dense) == expected
    assert as_amounts({"params": 0.4}, dense) == {"params": 80}


def test_the_best_of_all_numbers_is_returned_and_beats_narrow_channels_alone() -> None:
    model = network()
    found = shorten(model, X[:1], target={"macs": 0.6}, batches=[X], floor=0.6)
    assert [count for count, _ in found.tried][:3] == [0, 1, 2]
    assert found.change == min(change for _, change in found.tried) < found.tried[0][1]
    assert found.left_out and {*found.left_out} <= {*IDLE}
    judged, fit = [X[1::4], X[3::4]], [X[::2]]
    again = bp.fit_expand(bp.attach(found.model, found.plan, "reconstruction", batches=fit), fit)
    again.alpha = 0.0
    small = bp.collapse(again).eval()
    # Statistics of norms are those of what is judged, as everywhere in plans.
    changes = OutputChange([[anew(model, x)] for x in judged]).of(
        [[anew(small, x)] for x in judged]
    )
    assert changes == pytest.approx(found.change, rel=1e-3)


def test_no_more_blocks_are_tried_once_three_numbers_were_worse() -> None:
    model = ResNet(14, (6, 8, 10)).train()
    for _ in range(50):
        model(X)  # its norms know the images
    structure = bp.plan(model.eval(), X[:1]).structure
    assert len(bp.blocks(model, X[:1])) == 4

    def choose(shallow: nn.Module) -> bp.Plan:
        return bp.plan(shallow, X[:1], keep=0.2 if shortcuts(shallow) else 1.0)

    found = shortened(model, structure, bp.blocks(model, X[:1]), choose, [X], "l1")
    assert [count for count, _ in found.tried] == [0, 1, 2, 3] and found.left_out == ()
    assert found.change == found.tried[0][1] < min(change for _, change in found.tried[1:])


def anew(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return outputs by the batch's own statistics."""
    model.train()
    with torch.no_grad():
        found: torch.Tensor = model(x)
    model.eval()
    return found


def test_what_cannot_be_asked_is_told() -> None:
    model = network()
    with pytest.raises(
        bp.PruneError, match=r"target latency \(=0.5\) is a share, .* give latency_ms"
    ):
        shorten(model, X[:1], target={"latency": 0.5}, batches=[X])
    with pytest.raises(bp.PruneError, match="target needs batches"):
        shorten(model, X[:1], target={"macs": 0.5}, batches=[])
    with pytest.raises(bp.PruneError, match="cannot be reached"):
        shorten(model, X[:1], target={"macs": 0.001}, batches=[X])


def test_blocks_stay_in_which_something_is_named() -> None:
    model = network()
    named = {"exclude": [f"{IDLE[0]}.conv1"], "keep": {IDLE[1]: 1.0}}
    found = shorten(model, X[:1], target={"macs": 0.6}, batches=[X], floor=0.6, **named)
    assert not {*IDLE} & {*found.left_out}
    assert [count for count, _ in found.tried][:2] == [0, 1]

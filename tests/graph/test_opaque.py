"""`opaque`: what is not looked into is left alone, and counts in every total."""

from __future__ import annotations

import pytest
import torch
from models import Net, counted_macs
from torch import Tensor, nn

import branchprune as bp


class Head(nn.Module):
    """Two convolutions, and one that is depthwise, for each of the tensors in a list."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, groups=w), nn.Conv2d(w, 6, 1), nn.SiLU())
            for w in widths
        )

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for i, part in enumerate(self.parts):
            xs[i] = part(xs[i])
        return xs


def network() -> Net:
    return Net(
        lambda m, x: m.head([m.b(m.act(m.a(x))), m.c(m.act(m.a2(x)))]),
        **{"a": nn.Conv2d(3, 16, 3), "a2": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 8, 1)},
        **{"c": nn.Conv2d(16, 10, 1), "act": nn.SiLU(), "head": Head(8, 10)},
    )


@pytest.mark.parametrize("opaque", ["head", "head.parts", "head.parts.0"])
def test_totals_count_the_whole_model(opaque: str) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    seen, plan = bp.plan(model, x), bp.plan(model, x, opaque=opaque)
    assert plan.before == seen.before
    assert plan.before.params == sum(p.numel() for p in model.parameters())
    assert plan.before.macs == counted_macs(model, x[:1])
    blended = bp.attach(model, plan)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert plan.after.macs == counted_macs(small, x[:1])


def test_parts_that_are_not_looked_into_have_a_line_of_their_own() -> None:
    model = network()
    plan = bp.plan(model, torch.randn(1, 3, 8, 8), opaque=["head"])
    macs = 16 * (8 * 9 + 8 * 6 + 10 * 9 + 10 * 6)
    params = sum(p.numel() for p in model.head.parameters())
    line = f"of these not looked into: head: channels 12, params {params}, macs {macs:,}"
    assert line in str(plan).splitlines()
    assert plan.as_dict()["unseen"] == {"head": {"channels": 12, "params": params, "macs": macs}}


@pytest.mark.parametrize("opaque", ["head.parts", "head.parts.1"])
def test_a_list_means_each_of_its_modules(opaque: str) -> None:
    plan = bp.plan(network(), torch.randn(2, 3, 8, 8), opaque=opaque)
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["c"] == "read by head.parts.1 (Sequential): it is opaque"
    assert reasons["a"] is None and (reasons["b"] is None) == (opaque == "head.parts.1")


def test_a_layer_can_be_opaque_and_an_activation_that_is_shared_with_it_is_not() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 8, 3), shared),
        nn.Sequential(nn.Conv2d(8, 8, 3), shared, nn.Conv2d(8, 4, 1)),
    )
    for opaque in ("4.0", "4"):
        plan = bp.plan(model, torch.randn(1, 3, 12, 12), opaque=opaque)
        reasons = {group.name: group.reason for group in plan.groups}
        kind = "Conv2d" if opaque == "4.0" else "Sequential"
        assert reasons["0"] is None
        assert reasons["2"] == f"read by {opaque} ({kind}): it is opaque"

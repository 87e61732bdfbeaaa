"""What must hold for every network before and after the collapse, checked on random ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from models import counted_macs, relative, scramble, spelled_out
from random_layers import KINDS, ONLY_2D
from random_networks import Case, attached, cases, image, planned, seeded, single, streams
from torch import nn

import branchprune as bp

EXACT = 1e-10


@settings(max_examples=20)
@given(cases())
def test_alpha_1_is_the_model(case: Case) -> None:
    blended = attached(case)
    for training in (False, True):
        model = copy.deepcopy(case.model).train(training)
        blended.train(training)
        assert torch.equal(seeded(model, case.x), seeded(blended, case.x))
    for name, value in model.state_dict().items():
        assert torch.equal(value, blended.model.state_dict()[name])


def check_collapse(case: Case, plan: bp.Plan, init: str = "l1") -> None:
    blended = bp.attach(case.model, plan, init, batches=[case.x])
    scramble(blended, seed=3)
    blended.alpha = 0
    small, other = bp.collapse(blended), spelled_out(blended)
    dims = case.x.dim() - 2
    x = image(dims, 2, seed=8).double()
    for training in (False, True):
        expected = seeded(copy.deepcopy(other).train(training), x).detach()
        assert expected.isfinite().all()
        assert relative(expected, seeded(small.train(training), x)) < EXACT
        with torch.no_grad():
            assert relative(expected, seeded(blended.train(training), x)) < EXACT
    assert type(small) is type(case.model)
    assert list(small.state_dict()) == list(case.model.state_dict())
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert plan.after.params < plan.before.params
    assert plan.before.macs == counted_macs(case.model.eval(), x[:1])
    assert plan.after.macs == counted_macs(small.eval(), x[:1])
    for group, channels in zip(plan.groups, plan.structure.groups, strict=True):
        if group.pruned:
            assert group.kept % channels.blocks == 0
            assert abs(group.kept - case.keep * group.width) < channels.blocks


@settings(max_examples=30)
@given(cases(), st.sampled_from(["l1", "random"]))
def test_collapse_is_exact(case: Case, init: str) -> None:
    case.double().model.eval()
    check_collapse(case, planned(case), init)


@settings(max_examples=20)
@given(cases(), st.sampled_from(["geometric_median", "taylor", "reconstruction"]))
def test_collapse_is_exact_from_every_start(case: Case, init: str) -> None:
    case.double().model.eval()
    seeded(case.model, case.x).square().sum().backward()
    check_collapse(case, planned(case), init)


ALONE = [(k, d) for k in KINDS for d in (1, 2, 3) if d == 2 or k not in ONLY_2D]


@pytest.mark.parametrize(("kind", "dims"), ALONE)
def test_each_step_alone_is_pruned(kind: str, dims: int) -> None:
    """The strategy is worth nothing if what it makes is frozen: the stream is narrow behind it."""
    case = single(kind, dims).double()
    plan = bp.plan(case.model.eval(), case.x)
    assert streams(plan, [kind]) == {0: "pruned"}
    reasons = {group.name: group.reason for group in plan.groups if not group.pruned}
    assert reasons == {"head": "it is an output of the model"}
    check_collapse(case, plan)


@pytest.mark.parametrize("kind", ["shuffle", "channel shuffle", "grouped shuffle"])
def test_a_shuffle_between_grouped_convolutions_is_pruned(kind: str) -> None:
    case = single(kind, groups=2).double()
    plan = bp.plan(case.model.eval(), case.x)
    assert [group.name for group in plan.groups if not group.pruned] == ["head"]
    check_collapse(case, plan)


@settings(max_examples=15)
@given(cases(), st.booleans())
def test_arguments_are_not_changed(case: Case, training: bool) -> None:
    model = case.model.train(training)
    next(iter(model.parts.children())).eval()
    model.parts.register_forward_hook(lambda *_: None)

    def state(net: nn.Module) -> dict[str, Any]:
        tensors = {k: v.clone() for k, v in net.state_dict().items()}
        flags = [(m.training, len(m._forward_hooks), type(m)) for m in net.modules()]
        identities = [(id(p), p.requires_grad, p.data_ptr()) for p in net.parameters()]
        return {"tensors": tensors, "flags": flags, "identities": identities, "text": repr(net)}

    def check(net: nn.Module, before: dict[str, Any]) -> None:
        after = state(net)
        tensors = before.pop("tensors")
        assert all(torch.equal(v, tensors[k]) for k, v in after.pop("tensors").items())
        assert after == before

    x, before = case.x.clone(), state(model)
    plan = planned(case)
    table = str(plan)
    check(model, before)
    before = state(model)
    blended = bp.attach(model, plan)
    check(model, before)
    blended.alpha = 0
    before = state(blended)
    bp.collapse(blended)
    check(blended, before)
    assert str(plan) == table and torch.equal(case.x, x)


@settings(max_examples=30)
@given(cases(), st.data())
def test_groups_in_any_order(case: Case, data: st.DataObject) -> None:
    """Some groups at 0 and some at 1: collapses exactly, or says which norm joins them."""
    case.double().model.eval()
    blended = attached(case)
    scramble(blended, seed=4)
    names = list(blended.alpha)
    values = {name: data.draw(st.sampled_from([0, 1])) for name in names}
    blended.alpha = {**values, names[0]: 0}
    try:
        small = bp.collapse(blended)
    except bp.PruneError as error:
        assert "meet in" in str(error)
        event("groups meet")
        return
    x = image(case.x.dim() - 2, 2, seed=8).double()
    assert relative(blended(x), small(x)) < EXACT
    rest = {}
    for group in blended.plan.groups:
        if group.pruned:
            narrow = blended.alpha[group.name] == 0
            layer = small.get_submodule(group.layers[0])
            made = getattr(layer, "out_channels", getattr(layer, "out_features", 0))
            assert made >= (group.kept if narrow else group.width)
            rest |= {} if narrow else dict.fromkeys(group.layers, case.keep)
    if rest:
        # A grouped convolution may be depthwise by now, and its layer make no channels of its own.
        event("the rest follows")
        second = bp.attach(small, planned(Case(small, case.x, rest)))
        assert torch.equal(second(x), small(x))
        scramble(second, seed=5)
        second.alpha = 0
        assert relative(spelled_out(second)(x), bp.collapse(second)(x)) < EXACT

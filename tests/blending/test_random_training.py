"""What must hold while random networks train: gradients, rest, copies, autocast, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import scramble
from random_layers import Step
from random_networks import Case, RandomNet, attached, cases, image, seeded
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

import branchprune as bp


@settings(max_examples=20)
@given(cases(), st.sampled_from([0.25, 0.5]))
def test_gradients_between_0_and_1(case: Case, alpha: float) -> None:
    case.model.train()
    blended = attached(case)
    scramble(blended, seed=5)
    blended.alpha = alpha
    seeded(blended, case.x).square().sum().backward()
    missing = [name for name, p in blended.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in blended.parameters())


@settings(max_examples=20)
@given(cases())
def test_the_wide_path_rests_at_alpha_0(case: Case) -> None:
    case.model.train()
    blended = attached(case)
    blended.alpha = 0
    before = copy.deepcopy(blended.state_dict())
    seeded(blended, case.x).square().sum().backward()
    after = blended.state_dict()
    for name, parameter in blended.twin.named_parameters():
        assert parameter.grad is not None, name
        assert blended.model.get_parameter(name).grad is None, name
    for name, _ in blended.twin.named_buffers():
        assert torch.equal(before[f"model.{name}"], after[f"model.{name}"]), name
        owner, _, last = name.rpartition(".")
        norm = blended.twin.get_submodule(owner)
        # InstanceNorm has a count of batches, too, but never counts.
        moves = isinstance(norm, _NormBase if last.startswith("running") else _BatchNorm)
        assert moves != torch.equal(before[f"twin.{name}"], after[f"twin.{name}"]), name
    for part in (blended.reduce, blended.expand):
        assert all(p.grad is not None for p in part.parameters())


@settings(max_examples=15)
@given(cases(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_copies_are_independent(case: Case, alpha: float, training: bool) -> None:
    blended = attached(case)
    blended.train(training).alpha = alpha
    other = copy.deepcopy(blended)
    assert other.alpha == blended.alpha and other.training == training
    expected = seeded(copy.deepcopy(blended), case.x)
    assert torch.equal(expected, seeded(other, case.x))
    storages = {t.untyped_storage().data_ptr() for t in blended.state_dict().values() if t.numel()}
    copied = {t.untyped_storage().data_ptr() for t in other.state_dict().values() if t.numel()}
    assert not storages & copied
    seeded(other, case.x).sum().backward()
    scramble(other)
    other.alpha = 1 - alpha
    assert all(p.grad is None for p in blended.parameters())
    assert set(blended.alpha.values()) == {alpha}
    assert torch.equal(expected, seeded(blended, case.x))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@settings(max_examples=15)
@given(cases())
def test_autocast(case: Case) -> None:
    """Runs forwards and backwards at every α, and stays near what float32 gives."""
    blended = attached(case)
    for alpha in (1.0, 0.5, 0.0):
        blended.alpha = alpha
        blended.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if alpha == 1:
                for net in (case.model, blended):
                    net.eval()
                assert torch.equal(case.model(case.x), blended(case.x))
            seeded(blended.train(), case.x).float().square().sum().backward()
            found = blended.eval()(case.x)
        grads = [p.grad for p in blended.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)
        assert len(grads) == len([*blended.parameters()]) or alpha != 0.5
        expected = blended(case.x)
        assert expected.dtype == torch.float32
        assert float((expected - found).detach().norm() / expected.detach().norm()) < 0.1


FIXED = {
    "residual": ["residual", "gate", "depthwise", "concat"],
    "shuffle": ["shufflenet", "channel shuffle", "glu", "maxout"],
    "channels last": ["convnext", "layer scale", "split", "upsample"],
}


@pytest.mark.parametrize(
    ("name", "training", "backend"),
    [
        ("residual", True, "aot_eager"),
        ("shuffle", False, "eager"),
        ("channels last", True, "eager"),
    ],
)
def test_compiled(name: str, training: bool, backend: str) -> None:
    """One graph a state of α, each compiled once and found again; gradients too."""
    steps = [
        Step(kind, 8, 3, 1, 1, True, norm, "relu", None)
        for kind, norm in zip(FIXED[name], ["batch", "group", "layer", "frozen"], strict=True)
    ]
    torch._dynamo.reset()
    model = scramble(RandomNet(2, steps)).train(training)
    x = image(2)
    blended = scramble(bp.attach(model, bp.plan(model, x)), seed=2).train(training)
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(blended, backend=counter, fullgraph=True)
    for alpha in (1.0, 0.5, 0.25, 0.0, 1.0, 0.5, 0.0):
        blended.alpha = alpha
        other = copy.deepcopy(blended)
        blended.zero_grad()
        expected, found = seeded(other, x), seeded(run, x)
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
        for net, y in ((other, expected), (blended, found)):
            net.zero_grad()
            y.square().sum().backward()
        for p, q in zip(other.parameters(), blended.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    assert counter.frame_count == 3

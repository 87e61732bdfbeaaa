"""Sampled paths: what training computes where α is between 0 and 1, against plain torch."""

from __future__ import annotations

import copy
import pickle
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Net, relative, resnet, scramble, spelled_out, vgg
from random_networks import Case, attached, cases
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.path_sampling import along_examples

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
MIXINGS = ["sum", "group", "step", "sample"]


def smooth() -> nn.Module:
    """Two pruned convolutions and a classifier, without norms, so that examples are apart."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def blended_of(model: nn.Module, x: Tensor = X, **options: Any) -> bp.Blended:
    model = scramble(model.double())
    blended = bp.attach(model, bp.plan(model, x), **options)
    scramble(blended, seed=6)
    return blended.train()


def either_or(blended: bp.Blended, paths: Tensor, x: Tensor = X) -> Tensor:
    """Compute `smooth` with 1 (wide) or 0 (branch) for each example and group, in plain torch."""
    net, ends = blended.model, [("0", "2"), ("2", "6")]
    a = [blended.reduce.get_submodule(p).weights[0] for p, _ in ends]
    b = [blended.expand.get_submodule(c).weights[0] for _, c in ends]
    rows = []
    for example, path in zip(x, paths, strict=True):
        z = F.conv2d(example[None], net[0].weight, net[0].bias, padding=1)
        narrow = torch.einsum("kc,nchw->nkhw", a[0], z).tanh()
        h = z.tanh() if path[0] else torch.einsum("ck,nkhw->nchw", b[0], narrow)
        z = F.conv2d(h, net[2].weight, net[2].bias)
        narrow = torch.einsum("kc,nchw->nkhw", a[1], z).relu().mean((2, 3))
        h = z.relu().mean((2, 3)) if path[1] else narrow @ b[1].T
        rows.append(h @ net[6].weight.T + net[6].bias)
    return torch.cat(rows)


def which(blended: bp.Blended, y: Tensor, x: Tensor = X) -> list[tuple[int, ...]]:
    """Return the path that each example has taken in each group; there must be one."""
    choices = list(product((0, 1), repeat=2))
    outputs = [either_or(blended, torch.tensor([path] * len(x)), x) for path in choices]
    found = []
    for i, row in enumerate(y):
        near = [c for c, out in zip(choices, outputs, strict=True) if relative(out[i], row) < 1e-12]
        assert len(near) == 1
        found += near
    return found


def test_a_step_draws_for_all_groups_together() -> None:
    blended = blended_of(smooth(), mixing="step")
    blended.alpha = 0.5
    seen = [which(blended, blended(X)) for _ in range(20)]
    assert {path for paths in seen for path in paths} == {(0, 0), (1, 1)}
    assert all(len(set(paths)) == 1 for paths in seen)


def test_a_step_with_several_alphas_draws_one_number() -> None:
    """A group with a larger α takes the wide path whenever one with a smaller α does."""
    blended = blended_of(smooth(), mixing="step")
    blended.alpha = {"0": 0.3, "2": 0.7}
    paths = [which(blended, blended(X[:1]), X[:1])[0] for _ in range(400)]
    assert set(paths) == {(0, 0), (0, 1), (1, 1)}
    for group, alpha in enumerate((0.3, 0.7)):
        assert abs(sum(path[group] for path in paths) / 400 - alpha) < 4 * (0.21 / 400) ** 0.5


def test_each_group_draws() -> None:
    blended = blended_of(smooth(), mixing="group")
    blended.alpha = {"0": 0.3, "2": 0.7}
    seen = [which(blended, blended(X[:2]), X[:2]) for _ in range(400)]
    assert all(first == second for first, second in seen)
    paths = [first for first, _ in seen]
    assert set(paths) == set(product((0, 1), repeat=2))
    for group, alpha in enumerate((0.3, 0.7)):
        assert abs(sum(path[group] for path in paths) / 400 - alpha) < 4 * (0.21 / 400) ** 0.5
    both = sum(path == (1, 1) for path in paths) / 400
    assert abs(both - 0.21) < 4 * (0.21 * 0.79 / 400) ** 0.5


def test_each_example_draws() -> None:
    blended = blended_of(smooth(), mixing="sample")
    blended.alpha = {"0": 0.3, "2": 0.7}
    x = torch.randn(400, 3, 8, 8, dtype=torch.float64)
    paths = which(blended, blended(x), x)
    assert set(paths) == set(product((0, 1), repeat=2))
    for group, alpha in enumerate((0.3, 0.7)):
        assert abs(sum(path[group] for path in paths) / 400 - alpha) < 4 * (0.21 / 400) ** 0.5
    assert which(blended, blended(x), x) != paths


@pytest.mark.parametrize("mixing", MIXINGS)
def test_evaluation_is_the_weighted_sum(mixing: Any) -> None:
    blended = blended_of(vgg(), mixing=mixing).eval()
    blended.alpha = 0.4
    plain = bp.attach(blended.model, blended.plan)
    plain.load_state_dict(blended.state_dict())
    state = torch.get_rng_state()
    assert torch.equal(blended(X), plain.eval()(X))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_nothing_is_drawn_at_0_and_1(mixing: Any, alpha: float) -> None:
    blended = blended_of(smooth(), mixing=mixing)
    blended.alpha = alpha
    state = torch.get_rng_state()
    wide = torch.full((len(X), 2), alpha)
    assert relative(either_or(blended, wide), blended(X)) < 1e-12
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_groups_at_0_and_1_stay_there(mixing: Any) -> None:
    blended = blended_of(smooth(), mixing=mixing)
    for fixed in (0, 1):
        blended.alpha = {"0": fixed, "2": 0.5}
        paths = {path for _ in range(10) for path in which(blended, blended(X))}
        assert paths == {(fixed, 0), (fixed, 1)}


def test_the_default_is_the_sum() -> None:
    model = resnet()
    first, second = blended_of(copy.deepcopy(model)), blended_of(model, mixing="sum")
    for blended in (first, second):
        blended.alpha = 0.5
    state = torch.get_rng_state()
    assert torch.equal(first(X), second(X))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_a_seed_gives_the_same_paths_again(mixing: Any) -> None:
    blended = blended_of(vgg(), mixing=mixing)
    blended.alpha = 0.5
    torch.manual_seed(4)
    first = [blended(X).detach() for _ in range(4)]
    state = torch.get_rng_state()
    later = [blended(X).detach() for _ in range(4)]
    torch.set_rng_state(state)
    assert all(torch.equal(y, blended(X)) for y in later)
    torch.manual_seed(4)
    assert all(torch.equal(y, blended(X)) for y in first)
    assert not all(torch.equal(y, first[0]) for y in first + later)


def test_a_step_computes_one_path() -> None:
    """What is not drawn has no gradient, and its norms rest."""
    blended = blended_of(resnet(), mixing="step")
    blended.alpha = 0.5
    seen = set()
    for _ in range(12):
        blended.zero_grad()
        before = copy.deepcopy(blended.state_dict())
        blended(X).square().sum().backward()
        after = blended.state_dict()
        moved = {n: not torch.equal(before[n], after[n]) for n in before if "running" in n}
        wide = blended.expand.get_submodule("3.conv1").weights[0].grad is None
        seen.add(wide)
        assert all(
            moves == name.startswith("model." if wide else "twin.") for name, moves in moved.items()
        )
        for name, parameter in blended.named_parameters():
            part = name.split(".")[0]
            if part in ("reduce", "expand", "twin"):
                assert (parameter.grad is None) == wide, name
            elif name.replace("model.", "twin.", 1) in dict(blended.named_parameters()):
                assert (parameter.grad is None) != wide, name
    assert seen == {True, False}


@pytest.mark.parametrize("mixing", ["group", "step", "sample"])
def test_the_mean_of_a_linear_model_is_the_weighted_sum(mixing: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 4))
    blended = blended_of(model, mixing=mixing)
    blended.alpha = 0.3
    torch.manual_seed(1)
    with torch.no_grad():
        draws = torch.stack([blended(X) for _ in range(600)])
        expected = blended.eval()(X)
    bound = 4.5 * draws.std(0) / 600**0.5
    assert ((draws.mean(0) - expected).abs() < bound).all()
    blended.alpha = 0.5
    assert not ((draws.mean(0) - blended(X)).abs() < bound).all()


def concatenation() -> nn.Module:
    """Channels that stay beside pruned ones, under a norm that has a twin."""
    return Net(
        lambda m, x: m.b(m.n(torch.cat([m.a(x), m.stays(x)], 1)).relu()).flatten(1),
        a=nn.Conv2d(3, 8, 3),
        stays=nn.Conv2d(3, 6, 3),
        n=nn.BatchNorm2d(14),
        b=nn.Conv2d(14, 4, 3),
    )


@pytest.mark.parametrize("mixing", ["group", "step", "sample"])
def test_channels_that_stay_go_with_those_beside_them(mixing: Any) -> None:
    model = scramble(concatenation().double())
    plan = bp.plan(model, X, exclude=["stays"])
    blended = scramble(bp.attach(model, plan, mixing=mixing), seed=2).train()
    for module in blended.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    ends = []
    for alpha in (0, 1):
        blended.alpha = alpha
        ends.append(blended(X))
    blended.alpha = 0.5
    found = set()
    for _ in range(10):
        y = blended(X)
        for i, row in enumerate(y):
            match = [k for k in (0, 1) if relative(ends[k][i], row) < 1e-12]
            assert len(match) == 1
            found.add(match[0])
    assert found == {0, 1}


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_concatenation_of_groups_at_0_and_1(mixing: Any) -> None:
    """Both paths are computed and none is drawn or matched."""
    model = Net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1).tanh()),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 6, 3),
        c=nn.Conv2d(14, 4, 3),
    )
    matching = 0.0 if mixing == "step" else 0.5
    blended = blended_of(model, mixing=mixing, matching=matching)
    blended.alpha = {"a": 0, "b": 1}
    state = torch.get_rng_state()
    found = blended(X)
    assert torch.equal(state, torch.get_rng_state()) and blended.matching_loss == 0
    a, b = blended.reduce.a.weights[0], blended.expand.c.weights[0]
    z = torch.einsum("kc,nchw->nkhw", a, blended.model.a(X)).tanh()
    z = torch.cat([torch.einsum("ck,nkhw->nchw", b, z), blended.model.b(X).tanh()], 1)
    assert relative(blended.model.c(z), found) < 1e-12


def test_examples_must_be_along_dimension_0() -> None:
    model = Net(
        lambda m, x: m.c(m.b(m.a(x.flatten(0, 1)).relu()).relu()),
        a=nn.Linear(5, 8),
        b=nn.Linear(8, 8),
        c=nn.Linear(8, 2),
    )
    x = torch.randn(4, 3, 5)
    blended = bp.attach(model, bp.plan(model, x), mixing="sample").train()
    assert blended(x).shape == (12, 2)
    blended.alpha = 0.5
    with pytest.raises(
        bp.PruneError, match=r"the 4 examples along dimension 0, but b reads a .* \(12, 8\)"
    ):
        blended(x)
    assert blended.eval()(x).shape == (12, 2)
    bp.attach(model, blended.plan, mixing="group").train()(x)


def test_channels_are_no_examples_even_if_there_are_as_many() -> None:
    alphas = torch.rand(8, 2)
    assert along_examples(alphas, torch.randn(8, 5, 8), -1, "b").shape == (8, 1, 1, 2)
    with pytest.raises(bp.PruneError, match=r"b reads a tensor of shape \(8,\)"):
        along_examples(alphas, torch.randn(8), -1, "b")


class Scaled(nn.Module):
    """The first argument is a single number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth()

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.net(scale * x)
        return y


def test_a_number_among_the_inputs_is_no_batch() -> None:
    model = scramble(Scaled().double())
    scale = torch.tensor(2.0, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, (scale, X)), mixing="sample").train()
    scramble(blended, seed=6)
    blended.alpha = 0.5
    same = blended_of(smooth(), mixing="sample")
    same.load_state_dict({k.replace(".net.", "."): v for k, v in blended.state_dict().items()})
    torch.manual_seed(7)
    found = blended(scale, X)
    torch.manual_seed(7)
    assert torch.equal(found, same(scale * X))


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_copies_and_checkpoints(mixing: Any) -> None:
    blended = blended_of(vgg(), mixing=mixing)
    plain = bp.attach(blended.model, blended.plan)
    assert list(blended.state_dict()) == list(plain.state_dict())
    blended.alpha = 0.5
    other = bp.attach(blended.model, blended.plan, mixing=mixing).train()
    other.load_state_dict(blended.state_dict())
    for copied in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended)), other):
        assert copied.mixing == mixing
        for seed in range(3):
            outputs = []
            for net in (blended, copied):
                torch.manual_seed(seed)
                outputs.append(net(X))
            assert torch.equal(*outputs)


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_autocast_and_collapse(mixing: Any) -> None:
    model = scramble(resnet()).train()
    x = X.float()
    blended = bp.attach(model, bp.plan(model, x), mixing=mixing)
    optimizer = torch.optim.SGD(blended.parameters(), 1e-3)
    for alpha in (0.5, 0.25, 0.0):
        blended.alpha = alpha
        with torch.autocast("cpu", torch.bfloat16):
            loss = blended(x).float().square().mean()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in blended.parameters() if p.grad is not None)
        optimizer.step()
    blended.eval()
    small = bp.collapse(blended)
    assert relative(spelled_out(blended)(x), small(x)) < 1e-4


@pytest.mark.parametrize("mixing", MIXINGS[1:])
def test_compiled(mixing: Any) -> None:
    torch._dynamo.reset()
    blended = blended_of(smooth(), mixing=mixing)
    reference = copy.deepcopy(blended)
    blended.compile(backend="aot_eager", fullgraph=True)
    for alpha in (0.5, 0.25, 0.0):
        outputs = []
        for net in (reference, blended):
            net.zero_grad()
            net.alpha = alpha
            torch.manual_seed(2)
            outputs.append(net(X))
            outputs[-1].square().sum().backward()
        assert relative(*outputs) < 1e-12
        for p, q in zip(reference.parameters(), blended.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, 1e-9, 1e-12)
    torch._dynamo.reset()


def test_inside_draws_for_each_call_of_the_part() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = smooth()

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.body(x * scale) if scale else x

    model = scramble(Outer().double())
    plan = bp.plan(model, (X, 1.0), inside="body")
    for mixing in MIXINGS[1:]:
        blended = scramble(bp.attach(model, plan, mixing=mixing), seed=3).train()  # type: ignore[arg-type]
        blended.alpha = 0.5
        y = [blended(X, 1.0) for _ in range(8)]
        assert not all(torch.equal(other, y[0]) for other in y)


@pytest.mark.parametrize("mixing", ["both", "", None, 3])
def test_unknown_mixing(mixing: Any) -> None:
    with pytest.raises(bp.PruneError, match=rf"mixing \(={mixing!r}\) must be one of 'sum', "):
        blended_of(smooth(), mixing=mixing)


@settings(max_examples=25)
@given(cases(), st.sampled_from(["group", "sample"]))
def test_random_networks_train(case: Case, mixing: Any) -> None:
    """Any network that a plan accepts has gradients everywhere."""
    case.model.train()
    blended = attached(case, mixing=mixing)
    scramble(blended, seed=5)
    blended.alpha = 0.5
    blended(case.x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in blended.parameters())


@settings(max_examples=25)
@given(cases(), st.integers(0, 100))
def test_random_networks_take_the_paths_that_are_drawn(case: Case, seed: int) -> None:
    """A forward pass is that of a model whose groups are at 0 or 1, as the generator says."""
    for module in case.double().model.train().modules():
        if hasattr(module, "p"):  # dropout of any kind
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    blended = scramble(attached(case, mixing="group"), seed=5)
    alphas = torch.linspace(0.2, 0.8, len(blended.alpha))
    blended.alpha = dict(zip(blended.alpha, alphas.tolist(), strict=True))
    fixed = copy.deepcopy(blended)
    torch.manual_seed(seed)
    paths = (torch.rand(len(alphas)) < blended.alphas).tolist()
    fixed.alpha = {name: float(path) for name, path in zip(fixed.alpha, paths, strict=True)}
    torch.manual_seed(seed)
    found = blended(case.x)
    assert relative(fixed(case.x), found) < 1e-9

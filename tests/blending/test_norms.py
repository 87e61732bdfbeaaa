"""Norms of a weighted sum that are kept, or private to each path, against plain torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, resnet, scramble, spelled_out, vgg
from torch import Tensor, nn
from two_paths import X, blended_of, gradients

import branchprune as bp
from branchprune.blending.branch_shares import branch_shares

ALPHAS = {"0": 0.25, "3": 0.6}
NORMS: list[Any] = ["kept", "private"]


def two_convolutions() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def normalized(z: Tensor, norm: nn.Module, batch: bool) -> Tensor:
    """Normalise, with the statistics of the batch or those of a norm, as it is written."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    mean, variance = norm.running_mean, norm.running_var
    if batch:
        mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
    assert variance is not None
    shape = (1, -1, 1, 1)
    z = (z - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    return z * norm.weight.view(shape) + norm.bias.view(shape)


def written_out(blended: bp.Blended, norms: str, batch: bool) -> Tensor:
    """Compute `two_convolutions` at ALPHAS from the weights of a blended model."""
    net, twin = blended.model, blended.twin
    reduce0, reduce3 = (blended.reduce.get_submodule(name).weights[0] for name in ("0", "3"))
    expand3, expand8 = (blended.expand.get_submodule(name).weights[0] for name in ("3", "8"))
    first, second = ALPHAS.values()
    of_model = batch and norms != "kept"
    z = F.conv2d(X, net[0].weight, net[0].bias, padding=1)
    u = normalized(z, net[1], of_model).relu()
    narrow = torch.einsum("kc,nchw->nkhw", reduce0, z)
    narrow = normalized(narrow, twin.get_submodule("1"), batch).relu()
    branch = torch.einsum("ck,nkhw->nchw", expand3, narrow)
    if norms == "private":
        other = blended.private
        wide, thin = (F.conv2d(x, net[3].weight, net[3].bias) for x in (u, branch))
        u = first * normalized(wide, net[4], batch)
        u = u + (1 - first) * normalized(thin, other.get_submodule("model.4"), batch)
        wide, thin = (torch.einsum("kc,nchw->nkhw", reduce3, z) for z in (wide, thin))
        narrow = first * normalized(wide, other.get_submodule("twin.4"), batch)
        narrow = narrow + (1 - first) * normalized(thin, twin.get_submodule("4"), batch)
    else:
        z = F.conv2d(first * u + (1 - first) * branch, net[3].weight, net[3].bias)
        u = normalized(z, net[4], of_model)
        narrow = torch.einsum("kc,nchw->nkhw", reduce3, z)
        narrow = normalized(narrow, twin.get_submodule("4"), batch)
    u, narrow = (x.relu().mean((2, 3)) for x in (u, narrow))
    mixed = second * u + (1 - second) * narrow @ expand8.T
    return F.linear(mixed, net[8].weight, net[8].bias)


@pytest.mark.parametrize("norms", ["batch", *NORMS])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(norms: Any, training: bool) -> None:
    blended = blended_of(two_convolutions(), norms=norms).train(training)
    blended.alpha = ALPHAS
    expected, found = written_out(blended, norms, training), blended(X)
    assert relative(expected, found) < 1e-7  # α is kept in single precision
    pairs = zip(
        blended.named_parameters(),
        gradients(expected.square().sum(), blended),
        gradients(found.square().sum(), blended),
        strict=True,
    )
    largest = max(float(g.abs().max()) for g in gradients(found.square().sum(), blended))
    for (name, _), a, b in pairs:
        assert float((a - b).abs().max()) < 1e-7 * largest, name
        assert "weight" not in name or float(b.abs().max()) > 0, name


def statistics(blended: bp.Blended) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in blended.state_dict().items() if "running" in k}


def moved(blended: bp.Blended) -> set[str]:
    """Return which of the norms behind the second convolution a training pass moves."""
    before = statistics(blended)
    blended(X)
    after = statistics(blended)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    return {k.rpartition(".")[0] for k in changed if k.split(".")[-2] == "4"}


@pytest.mark.parametrize(
    ("norms", "alpha", "expected"),
    [
        ("batch", 0.5, {"model.4", "twin.4"}),
        ("kept", 0.5, {"twin.4"}),
        ("kept", 1.0, {"model.4"}),
        ("kept", 0.0, {"twin.4"}),
        ("private", 0.5, {"model.4", "twin.4", "private.model.4", "private.twin.4"}),
        ("private", 1.0, {"model.4"}),
        ("private", 0.0, {"twin.4"}),
        ("private", {"0": 0.5, "3": 1.0}, {"model.4", "private.model.4"}),
        ("private", {"0": 0.5, "3": 0.0}, {"twin.4", "private.twin.4"}),
        ("private", {"0": 0.0, "3": 0.5}, {"private.model.4", "twin.4"}),
        ("private", {"0": 1.0, "3": 0.5}, {"model.4", "private.twin.4"}),
        ("private", {"0": 1.0, "3": 0.0}, {"private.twin.4"}),
    ],
)
def test_nothing_of_it_is_computed_at_0_and_1(norms: Any, alpha: Any, expected: Any) -> None:
    blended = blended_of(two_convolutions(), norms=norms)
    blended.alpha = alpha
    assert moved(blended) == expected
    assert blended.twin.get_submodule("4").training  # no mode is changed for it
    plain = bp.attach(blended.model, blended.plan).train()
    plain.load_state_dict(blended.state_dict(), strict=False)
    if alpha in (0.0, 1.0):
        assert torch.equal(plain(X), blended(X))


def test_each_norm_has_the_statistics_of_its_path() -> None:
    blended = blended_of(two_convolutions(), norms="private")
    for norm in blended.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    blended.alpha = 0.5
    blended(X)
    z = blended.model[0](X)
    wide = blended.model[3](F.relu(blended.model[1](z)))
    narrow = F.relu(blended.twin.get_submodule("1")(blended.reduce.get_submodule("0")(z)))
    thin = blended.model[3](blended.expand.get_submodule("3")(narrow))
    reduce = blended.reduce.get_submodule("3")
    for name, x in (
        *(("model.4", wide), ("private.model.4", thin)),
        *(("private.twin.4", reduce(wide)), ("twin.4", reduce(thin))),
    ):
        found = blended.get_submodule(name)
        assert relative(x.mean((0, 2, 3)), found.running_mean) < 1e-12
        assert relative(x.var((0, 2, 3)), found.running_var) < 1e-12


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("make", [vgg, resnet])
def test_a_trained_branch_collapses(norms: Any, make: Any) -> None:
    model, x = scramble(make()).train(), X.float()
    blended = bp.attach(model, bp.plan(model, x), norms=norms)
    optimizer = torch.optim.SGD(blended.parameters(), 1e-2)
    for alpha in (0.6, 0.2, 0.0, 0.0):
        blended.alpha = alpha
        optimizer.zero_grad()
        blended(x).square().mean().backward()
        optimizer.step()
    blended.eval()
    small = bp.collapse(blended)
    assert relative(blended(x), small(x)) < 1e-5
    assert relative(spelled_out(blended)(x), small(x)) < 1e-5
    assert list(small.state_dict()) == list(model.state_dict())


def test_shares_are_those_of_the_sum() -> None:
    """They are measured where both paths leave for the layer, whatever norms do behind it."""
    plain, blended = (blended_of(two_convolutions(), norms=n) for n in ("batch", "private"))
    shares = []
    for each in (plain, blended):
        each.load_state_dict(plain.state_dict(), strict=False)
        each.alpha = ALPHAS
        shares.append(branch_shares(each, X))
    assert shares[0].keys() == shares[1].keys() == {"3", "8"}
    assert shares[1]["3"] == pytest.approx(shares[0]["3"], rel=1e-12)


LAYERS = {
    "1d": (nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6)),
    "3d": (nn.Conv3d(3, 8, 1), nn.ReLU(), nn.Conv3d(8, 6, 2), nn.BatchNorm3d(6)),
    "fully connected": (nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6)),
    "transposed": (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6)),
    "grouped": (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "GroupNorm": (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.GroupNorm(2, 6)),
    "InstanceNorm": (
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)),
        nn.InstanceNorm2d(6, affine=True),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_and_norms_of_every_kind(kind: str) -> None:
    first, relu, second, norm = copy.deepcopy(LAYERS[kind])
    dims = {"1d": 1, "3d": 3, "fully connected": 0}.get(kind, 2)
    x = torch.randn(4, 3, *(6, 5, 6)[:dims], dtype=torch.float64)
    model = scramble(Net(lambda m, x: m.n(m.b(m.a(x).relu())), a=first, b=second, n=norm).double())
    plan = bp.plan(model, x, exclude=["b"])
    blended = scramble(bp.attach(model, plan, norms="private"), seed=3).train()
    blended.alpha = 0.25
    z = blended.model.a(x)
    branch = blended.expand.b(blended.reduce.a(z).relu())
    wide, thin = blended.model.b(z.relu()), blended.model.b(branch)
    own, other = blended.model.n, blended.private.get_submodule("model.n")
    assert relative(0.25 * own(wide) + 0.75 * other(thin), blended(x)) < 1e-7
    blended.alpha = 0.0  # what the branch has learnt is left
    assert relative(other(thin), blended(x)) < 1e-7
    assert relative(blended.eval()(x), bp.collapse(blended).eval()(x)) < 1e-10
    assert type(relu) is nn.ReLU


@pytest.mark.parametrize("make", [vgg, resnet])
def test_private_norms_in_evaluation_start_as_one(make: Any) -> None:
    """With its statistics held, a norm is affine, so that α · n(W u) + (1 − α) · n(W B ũ) is n."""
    model = scramble(make().double())
    blended, plain = (bp.attach(model, bp.plan(model, X), norms=n) for n in ("private", "batch"))
    alphas = torch.linspace(0.2, 0.8, len(blended.alpha)).tolist()
    for each in (blended, plain):
        each.alpha = dict(zip(blended.alpha, alphas, strict=True))
        each.eval()
    assert len(apart(blended)) >= 2
    assert relative(plain(X), blended(X)) < 1e-7
    assert relative(plain.train()(X), blended.train()(X)) > 1e-2


def apart(blended: bp.Blended) -> set[str]:
    norms = {n for n, m in blended.private.named_modules() if n and not [*m.children()]}
    return {name.removeprefix("model.") for name in norms if name.startswith("model.")}


def test_a_layer_that_something_else_reads_too_mixes_before() -> None:
    model = Net(
        lambda m, x: m.d((m.n(z := m.b(m.a(x).relu())) + z).relu() + m.m(m.c(z.relu()))),
        **dict(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), n=nn.BatchNorm2d(6)),
        **dict(c=nn.Conv2d(6, 6, 1), m=nn.BatchNorm2d(6), d=nn.Conv2d(6, 2, 1)),
    )
    blended = blended_of(model, norms="private")
    blended.alpha = 0.5
    assert apart(blended) == {"m"} and blended(X).shape == (4, 2, 6, 6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("group", ["0", "3"])
@pytest.mark.parametrize(("end", "near"), [(1.0, 1 - 2**-23), (0.0, 2**-23)])
def test_no_end_of_a_group_is_a_jump(group: str, end: float, near: float, training: bool) -> None:
    blended = blended_of(two_convolutions(), norms="private").train(training)
    for other in (0.0, 0.5, 1.0):
        found = []
        for alpha in (end, near):
            blended.alpha = {"0": other, "3": other} | {group: alpha}
            found.append(copy.deepcopy(blended)(X))
        assert relative(*found) < 1e-5, other


@pytest.mark.parametrize("alpha", [{"0": 0.0, "3": 1.0}, {"0": 1.0, "3": 0.0}])
def test_groups_collapse_one_after_another(alpha: dict[str, float]) -> None:
    blended = blended_of(two_convolutions(), norms="private")
    blended.alpha = alpha
    small = bp.collapse(blended)
    assert relative(blended(X), small(X)) < 1e-10
    assert relative(blended.eval()(X), small.eval()(X)) < 1e-10


def test_a_layer_whose_norm_something_else_passes_mixes_before() -> None:
    model = Net(
        lambda m, x: m.d(m.n(m.b(m.a(x).relu())) + m.m(m.c(m.n(m.a(x)).relu()))),
        **dict(a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 6, 1), n=nn.BatchNorm2d(6)),
        **dict(c=nn.Conv2d(6, 6, 1), m=nn.BatchNorm2d(6), d=nn.Conv2d(6, 2, 1)),
    )
    blended = blended_of(model, norms="private")
    blended.alpha = 0.0
    assert apart(blended) == {"m"}
    assert relative(blended.eval()(X), bp.collapse(blended)(X)) < 1e-10


def test_a_layer_that_reads_several_groups_mixes_before() -> None:
    model = Net(
        lambda m, x: m.d(m.n(m.c(torch.cat([m.a(x), m.b(x)], 1).relu())).relu()),
        **dict(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 6, 3), c=nn.Conv2d(14, 6, 1)),
        **dict(n=nn.BatchNorm2d(6), d=nn.Conv2d(6, 2, 1)),
    )
    model = scramble(model.double())
    with pytest.raises(bp.PruneError, match=r"norms \(='private'\): the model has no norm"):
        bp.attach(model, bp.plan(model, X), norms="private")
    blended = bp.attach(model, bp.plan(model, X, exclude=["b"]), norms="private")
    blended.alpha = 0.5
    assert apart(blended) == {"n"} and blended(X).shape == (4, 2, 6, 6)


def test_a_norm_without_statistics_is_not_kept() -> None:
    model = Net(
        lambda m, x: m.b(m.n(m.a(x)).relu()),
        **dict(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 1)),
        n=nn.BatchNorm2d(8, track_running_stats=False),
    )
    with pytest.raises(bp.PruneError, match=r"norms \(='kept'\): the model has no BatchNorm"):
        bp.attach(model, bp.plan(model, X.float()), norms="kept")


@pytest.mark.parametrize("norms", NORMS)
def test_what_does_not_go_together(norms: Any) -> None:
    model = two_convolutions()
    plan = bp.plan(model, X.float())
    with pytest.raises(bp.PruneError, match=r"norms \(='.*'\) needs mixing='sum'"):
        bp.attach(model, plan, norms=norms, mixing="group")
    with pytest.raises(bp.PruneError, match=r"norms \(='own'\) must be one of 'batch'"):
        bp.attach(model, plan, norms="own")  # type: ignore[arg-type]
    blended = bp.attach(model, plan, norms=norms)
    with pytest.raises(bp.PruneError, match="needs mixing='sum'"):
        blended.mixing = "sample"
    assert (blended.mixing, blended.norms) == ("sum", norms)


@pytest.mark.parametrize("norms", NORMS)
def test_the_branch_alone_is_judged_with_statistics_of_its_own(norms: Any) -> None:
    blended = blended_of(two_convolutions(), norms=norms)
    blended.alpha = ALPHAS
    before = statistics(blended)
    alone = copy.deepcopy(blended)
    alone.alpha = 0.0
    for norm in alone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    alone(X)
    with blended.branch_only([X]):
        assert relative(alone.eval()(X), blended.eval()(X)) < 1e-12
    assert all(torch.equal(before[k], v) for k, v in statistics(blended).items())
    assert blended.alpha == pytest.approx(ALPHAS)


@pytest.mark.parametrize("norms", NORMS)
def test_copies_and_checkpoints(norms: Any) -> None:
    blended = blended_of(two_convolutions(), norms=norms)
    blended.alpha = 0.5
    other = bp.attach(blended.model, blended.plan, norms=norms).train()
    other.load_state_dict(blended.state_dict())
    for copied in (copy.deepcopy(blended), pickle.loads(pickle.dumps(blended)), other):
        assert copied.norms == norms and torch.equal(blended(X), copied(X))


def test_a_norm_in_evaluation_stays_so_in_private_norms() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[4].eval()
            return self

    blended = blended_of(Frozen(*two_convolutions()), norms="private")
    blended.alpha = 0.5
    assert moved(blended) == set()
    assert not blended.private.get_submodule("model.4").training


@pytest.mark.parametrize("norms", NORMS)
def test_compiled(norms: Any) -> None:
    torch._dynamo.reset()
    blended = blended_of(two_convolutions(), norms=norms)
    reference = copy.deepcopy(blended)
    blended.compile(backend="eager", fullgraph=True)
    blended.alpha = reference.alpha = 0.5
    assert relative(reference(X), blended(X)) < 1e-12
    assert all(torch.equal(v, reference.state_dict()[k]) for k, v in statistics(blended).items())
    torch._dynamo.reset()

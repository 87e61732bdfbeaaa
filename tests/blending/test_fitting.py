"""Least-squares ends, against NumPy's own solution of the same problem."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from models import Net, relative, resnet, scramble, spelled_out, vgg
from random_networks import Case, attached, cases, image, seeded
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import branchprune as bp
from branchprune.blending.projections import LinearEnd

BATCHES = [
    torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
    for s in range(3)
]


def correlated(model: nn.Module, rank: int = 2) -> nn.Module:
    """Give every layer filters that are mixtures of a few, as training leaves them."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                rows = layer.weight.flatten(1)
                mix = torch.randn(len(rows), rank, generator=generator).to(rows.dtype)
                basis = torch.randn(rank, rows.shape[1], generator=generator).to(rows.dtype)
                noise = torch.randn(rows.shape, generator=generator).to(rows.dtype)
                rows = (mix @ basis / rank**0.5 + 0.1 * noise) / rows.shape[1] ** 0.5
                layer.weight.copy_(rows.view_as(layer.weight))
    return model


def blended_of(model: nn.Module, x: Any = BATCHES[0], **options: Any) -> bp.Blended:
    model = model.double().eval()
    return bp.attach(model, bp.plan(model, x), **options)


def least_squares(narrow: Tensor, wide: Tensor, ridge: float) -> Tensor:
    """Solve for B with rows of samples, the ridge as rows of its own."""
    size = ridge * float(narrow.square().sum(0).mean())
    rows = np.concatenate([narrow.numpy(), size**0.5 * np.eye(narrow.shape[1])])
    wanted = np.concatenate([wide.numpy(), np.zeros((narrow.shape[1], wide.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(rows, wanted, rcond=None)[0].T)


def samples(xs: list[Tensor]) -> Tensor:
    """Return the channels of images as columns."""
    return torch.cat([x.movedim(1, -1).flatten(0, -2) for x in xs])


@pytest.mark.parametrize(("ridge", "count"), [(1e-4, 3), (0.1, 3), (0.0, 3), (0.1, 1)])
def test_a_chain_is_solved_as_numpy_does(ridge: float, count: int) -> None:
    """Two convolutions and a flattened image; the second end sees the first one fitted."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)),
    )
    net, batches = scramble(model.double()).eval(), BATCHES[:count]
    blended = blended_of(net)
    fitted = bp.fit_expand(blended, batches, ridge=ridge)
    first = [index for index in blended.reduce.get_submodule("0").weights[0].argmax(1).tolist()]
    second = [index for index in blended.reduce.get_submodule("4").weights[0].argmax(1).tolist()]
    with torch.no_grad():
        wide = [net[:4](x) for x in batches]
        z = [net[0](x)[:, first] for x in batches]
        z = [F.batch_norm(x, None, None, net[1].weight[first], net[1].bias[first], True) for x in z]
        narrow = [F.max_pool2d(x.relu(), 2) for x in z]
        b = least_squares(samples(narrow), samples(wide), ridge)
        found = fitted.expand.get_submodule("4").weights[0]
        assert relative(b, found) < 1e-8
        inputs = [torch.einsum("ck,nkhw->nchw", b, x) for x in narrow]
        z = [F.conv2d(x, net[4].weight, net[4].bias, padding=1) for x in inputs]
        narrow, wide = [x[:, second].tanh() for x in z], [net[4:6](x) for x in wide]
        b = least_squares(samples(narrow), samples(wide), ridge)
        assert relative(b, fitted.expand.get_submodule("7").weights[0]) < 1e-8


def changing() -> nn.Module:
    """A network that changes in place what a layer has read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        y = m.b(x)
        x.tanh_()
        return m.c(x) + m.d(y)

    layers = {"b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(8, 4, 1), "d": nn.Conv2d(6, 4, 1)}
    return Net(forward, a=nn.Conv2d(3, 8, 3), **layers)


@pytest.mark.parametrize("make", [vgg, resnet, changing])
def test_one_batch_is_fitted_as_its_parts_are(make: Any) -> None:
    """Of one batch all ends are fitted in one pass; without norms the parts come to the same."""
    net = scramble(make().double()).eval()
    for name, module in [*net.named_modules()]:
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.ELU(inplace=True))
    blended = blended_of(net)
    at_once = bp.fit_expand(blended, [torch.cat(BATCHES)], ridge=1e-3)
    in_parts = bp.fit_expand(blended, BATCHES, ridge=1e-3)
    for name, weight in at_once.expand.named_parameters():
        torch.testing.assert_close(weight, in_parts.expand.get_parameter(name))
    assert at_once.alpha == blended.alpha


def test_grouped_convolutions_are_solved_block_by_block() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3))
    net = scramble(model.double())
    blended = blended_of(net)
    fitted = bp.fit_expand(blended, BATCHES, ridge=1e-3)
    chosen = blended.reduce.get_submodule("0").weights[0].argmax(1)
    with torch.no_grad():
        wide = samples([net[:2](x) for x in BATCHES])
    found = fitted.expand.get_submodule("2").weights[0]
    assert found.shape == (12, 2)
    for block in range(3):
        narrow = wide[:, chosen[2 * block : 2 * block + 2]]
        rows = slice(4 * block, 4 * block + 4)
        assert relative(least_squares(narrow, wide[:, rows], 1e-3), found[rows]) < 1e-9


def test_pieces_of_a_concatenation_are_solved_apart() -> None:
    model = Net(
        lambda m, x: m.d(torch.cat([m.a(x).relu(), m.b(x).relu(), m.c(x).tanh()], 1)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 6, 3),
        c=nn.Conv2d(3, 4, 3),
        d=nn.Conv2d(18, 2, 1),
    )
    net = scramble(model.double())
    blended = bp.attach(net, bp.plan(net, BATCHES[0], exclude=["b"]))
    fitted = bp.fit_expand(blended, BATCHES)
    assert len(fitted.expand.d.weights) == 2
    for name, act, found in zip(
        "ac", (torch.relu, torch.tanh), fitted.expand.d.weights, strict=True
    ):
        with torch.no_grad():
            wide = samples([act(net.get_submodule(name)(x)) for x in BATCHES])
        narrow = wide[:, blended.reduce.get_submodule(name).weights[0].argmax(1)]
        assert relative(least_squares(narrow, wide, 1e-4), found) < 1e-9


def errors(blended: bp.Blended, x: Tensor) -> tuple[float, list[float]]:
    """Return how far the branch's output and each `B ũ` are from the wide model's."""
    blended = copy.deepcopy(blended).eval()
    seen: dict[float, dict[str, Tensor]] = {0.0: {}, 1.0: {}}
    outputs = []
    for alpha, found in seen.items():
        blended.alpha = alpha
        handles = [
            blended.model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name, found=found: found.update({name: args[0]})
            )
            for name, layer in blended.plan.structure.linears.items()
            if layer.inputs
        ]
        outputs.append(blended.program(training=False, fold=False)(blended, x).detach())
        for handle in handles:
            handle.remove()
    pairs = [(seen[0.0][name], u) for name, u in seen[1.0].items()]
    ends = [float((b - u).detach().norm() / u.detach().norm()) for b, u in pairs]
    return float((outputs[0] - outputs[1]).norm() / outputs[1].norm()), ends


@pytest.mark.parametrize("make", [vgg, resnet])
def test_fitted_ends_reconstruct_better(make: Any) -> None:
    net = correlated(make().double())
    net.train()
    with torch.no_grad():
        for x in BATCHES * 20:
            net(x)
    blended = blended_of(net)
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    fitted = bp.fit_expand(blended, BATCHES)
    (before, ends_before), (after, ends_after) = errors(blended, x), errors(fitted, x)
    assert after < 0.7 * before
    assert sum(ends_after) < 0.8 * sum(ends_before)
    for net in (blended, fitted):
        net.alpha = 0
    assert relative(spelled_out(fitted)(x), bp.collapse(fitted)(x)) < 1e-10


def test_what_stays() -> None:
    """α = 1 is the model; nothing but `expand` and the branch's statistics differs."""
    net = scramble(vgg().double()).eval()
    blended = blended_of(net, mixing="sample", matching=0.1)
    blended.train().alpha = {"0": 0.5}
    blended.twin.get_submodule("1").eval()
    before = copy.deepcopy(blended.state_dict())
    fitted = bp.fit_expand(blended, (x for x in BATCHES))
    assert fitted.alpha == blended.alpha and fitted.mixing == "sample" and fitted.matching == 0.1
    modes = [[m.training for m in each.modules()] for each in (blended, fitted)]
    assert modes[0] == modes[1] and len(set(modes[0])) == 2
    after = blended.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    changed = {n for n, v in fitted.state_dict().items() if not torch.equal(v, before[n])}
    expected = {n for n in before if n.startswith("expand.")}
    expected |= {n for n in before if n.startswith("twin.") and ".running_" in n}
    counted = {n for n in before if n.startswith("twin.") and n.endswith("tracked")}
    assert expected <= changed <= expected | counted
    fitted.eval().alpha = 1
    assert torch.equal(fitted(BATCHES[0]), net(BATCHES[0]))
    momenta = [m.momentum for m in fitted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(momenta) == {0.1}


def test_the_branch_has_the_mean_statistics_of_the_batches() -> None:
    net = scramble(vgg().double()).eval()
    blended = blended_of(net)
    fitted = bp.fit_expand(blended, BATCHES)
    z = [blended.reduce.get_submodule("0")(net[0](x)) for x in BATCHES]
    twin = fitted.twin.get_submodule("1")
    mean = torch.stack([x.mean((0, 2, 3)) for x in z]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in z]).mean(0)
    assert torch.allclose(twin.running_mean, mean) and torch.allclose(twin.running_var, var)


def test_a_fitted_model_trains_and_knows_its_optimizer() -> None:
    net = scramble(vgg()).train()
    x = BATCHES[0].float()
    blended = bp.attach(net, bp.plan(net, x))
    fitted = bp.fit_expand(blended, [x])
    fitted.alpha = 0
    wrong = torch.optim.SGD(blended.parameters(), 0.01)
    fitted(x).sum().backward()
    with pytest.raises(bp.PruneError, match="was built before attach"):
        wrong.step()
    with pytest.raises(bp.PruneError, match="the optimizer was built before"):
        bp.collapse(fitted)
    torch.optim.SGD(fitted.parameters(), 0.01).step()
    bp.collapse(fitted)


def test_inside_and_several_arguments() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = vgg()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.body(x * scale)

    model = scramble(Outer().double()).eval()
    two = torch.tensor(2.0, dtype=torch.float64)
    plan = bp.plan(model, (BATCHES[0], two), inside="body")
    fitted = bp.fit_expand(bp.attach(model, plan), [(x, two) for x in BATCHES])
    named = bp.fit_expand(bp.attach(model, plan), [{"x": x, "scale": two} for x in BATCHES])
    other = bp.fit_expand(blended_of(copy.deepcopy(model.body)), [2 * x for x in BATCHES])
    for found in (fitted, named):
        pairs = zip(found.expand.parameters(), other.expand.parameters(), strict=True)
        assert all(torch.allclose(a, b) for a, b in pairs)


def test_dead_channels_are_left_out() -> None:
    """Channels of ũ that are always 0 make the system singular; the smallest solution is taken."""
    net = scramble(vgg().double()).eval()
    blended = blended_of(net)
    with torch.no_grad():
        blended.reduce.get_submodule("13").weights[0][:3] = 0
    for ridge in (0.0, 1e-4):
        found = bp.fit_expand(blended, BATCHES, ridge=ridge).expand.get_submodule("16").weights[0]
        assert found.isfinite().all() and found[:, :3].abs().max() < 1e-9
        assert found[:, 3:].abs().max() > 0.1


def test_bad_arguments() -> None:
    blended = blended_of(scramble(vgg()))
    with pytest.raises(bp.PruneError, match=r"batches must be several inputs"):
        bp.fit_expand(blended, BATCHES[0])
    with pytest.raises(bp.PruneError, match="batches is empty"):
        bp.fit_expand(blended, [])
    with pytest.raises(bp.PruneError, match=r"batches must be inputs of forward"):
        bp.fit_expand(blended, [torch.randn(2, 5, 8, 8, dtype=torch.float64)])
    for ridge in (-1.0, float("nan"), "none"):
        with pytest.raises(bp.PruneError, match=rf"ridge \(={ridge!r}\) must be a number"):
            bp.fit_expand(blended, BATCHES, ridge=ridge)  # type: ignore[arg-type]
    with pytest.raises(bp.PruneError, match=r"blended \(a Sequential\) must be made by"):
        bp.fit_expand(vgg(), BATCHES)  # type: ignore[arg-type]
    nothing = torch.full_like(BATCHES[0], float("nan"))
    with pytest.raises(bp.PruneError, match="4 cannot be fitted: what it reads is not finite"):
        bp.fit_expand(blended, [nothing])
    plain = blended_of(scramble(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))))
    with pytest.raises(bp.PruneError, match=r"2 cannot be fitted: it reads .* \(0, 8, 6, 6\)"):
        bp.fit_expand(plain, [BATCHES[0][:0]])


def check_ends(blended: bp.Blended, fitted: bp.Blended, batch: Tensor) -> None:
    """Check that no end would reconstruct the batch better as it was before."""
    wide: dict[str, Tensor] = {}
    narrow: dict[str, Tensor] = {}

    def keep(found: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor]) -> None:
        found.setdefault(name, args[0].clone())

    for name, layer in fitted.plan.structure.linears.items():
        if layer.expand == name:
            consumer = fitted.model.get_submodule(name)
            consumer.register_forward_pre_hook(partial(keep, wide, name))
    ends = {n: m for n, m in fitted.expand.named_modules() if isinstance(m, LinearEnd)}
    for name, end in ends.items():
        end.register_forward_pre_hook(partial(keep, narrow, name))
    for norm in fitted.twin.modules():
        norm.train(isinstance(norm, _BatchNorm))
    with torch.no_grad():
        for alpha in (1, 0):
            fitted.alpha = alpha
            fitted.program(training=False, fold=False)(fitted, batch)
        assert ends and narrow.keys() == ends.keys()
        for name, end in ends.items():
            before = blended.expand.get_submodule(name)(narrow[name])
            errors = [float((b - wide[name]).norm()) for b in (end(narrow[name]), before)]
            assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-9


@settings(max_examples=15)
@given(cases())
def test_random_networks(case: Case) -> None:
    """No end reconstructs its own calibration data worse than before, whatever the network."""
    case.double().model.eval()
    blended = attached(case)
    batch = image(case.x.dim() - 2, 6, seed=3).double()
    fitted = bp.fit_expand(blended, [batch], ridge=1e-8)
    assert torch.equal(seeded(fitted.eval(), case.x), seeded(case.model, case.x))
    check_ends(blended, fitted, batch)
    fitted.eval().alpha = 0
    assert relative(spelled_out(fitted)(batch), bp.collapse(fitted)(batch)) < 1e-9

"""Attach: the blended model at every α, how it starts, and that it behaves as a module."""

from __future__ import annotations

import copy
import math
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, counted_macs, relative, resnet, scramble, spelled_out, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.gradients import taylor
from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.scores import bn_scale, geometric_median, l1, l2

IMAGE = (2, 3, 8, 8)


def attached(model: nn.Module, shape: tuple[int, ...] = IMAGE, **options: Any) -> bp.Blended:
    weight = next(model.parameters())
    x = torch.randn(shape, dtype=weight.dtype)
    return bp.attach(model, bp.plan(model, x, keep=0.5), **options)


def one_by_one(weight: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False).to(weight.dtype)
    layer.weight.data = weight.detach()[..., None, None].clone()
    return layer


class PaperChain(nn.Module):
    """The blended chain as the paper draws it: ConvA and ConvB around every layer's twin."""

    def __init__(self, blended: bp.Blended) -> None:
        super().__init__()
        self.net = copy.deepcopy(blended.model)
        self.twins = copy.deepcopy(blended.twin)
        reduce, expand = blended.reduce, blended.expand
        ends = [("0", "4"), ("4", "8"), ("8", "13")]
        self.a = nn.ModuleList([one_by_one(reduce.get_submodule(p).weights[0]) for p, _ in ends])
        self.b = nn.ModuleList([one_by_one(expand.get_submodule(c).weights[0]) for _, c in ends])
        self.a_fc = blended.reduce.get_submodule("13").weights[0]
        self.b_fc = blended.expand.get_submodule("16").weights[0]

    def forward(self, x: Tensor, alphas: Sequence[float]) -> Tensor:
        for i, (start, alpha) in enumerate(zip((0, 4, 8), alphas, strict=False)):
            z = self.net[start](x)
            wide = F.max_pool2d(self.net[start + 1](z).relu(), 2)
            narrow = self.twins.get_submodule(str(start + 1))(self.a[i](z)).relu()
            x = alpha * wide + (1 - alpha) * self.b[i](F.max_pool2d(narrow, 2))
        z, alpha = self.net[13](x.flatten(1)), alphas[3]
        mixed = alpha * z.relu() + (1 - alpha) * (z @ self.a_fc.T).relu() @ self.b_fc.T
        return self.net[16](mixed)


@pytest.mark.parametrize("alpha", [1, 0.75, 0.5, 0.25, 0.125, 0])
@pytest.mark.parametrize("training", [False, True])
def test_a_chain_is_what_the_paper_draws(alpha: float, training: bool) -> None:
    model = vgg().double()
    model[15] = nn.Identity()
    blended = attached(model)
    scramble(blended)
    blended.train(training)
    chain = PaperChain(blended).train(training)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    blended.alpha = alpha
    assert relative(chain(x, [alpha] * 4), blended(x)) < 1e-12
    for key, value in chain.net.state_dict().items():
        if "running" in key and alpha > 0:
            assert torch.allclose(value, blended.model.state_dict()[key], atol=1e-13)
    for key, value in chain.twins.state_dict().items():
        if "running" in key and alpha < 1:
            assert torch.allclose(value, blended.twin.state_dict()[key], atol=1e-13)


@pytest.mark.parametrize("alphas", list(product([1, 0.5, 0], repeat=4)))
def test_a_chain_with_an_alpha_for_each_group(alphas: tuple[float, ...]) -> None:
    blended = attached(vgg().double().eval())
    scramble(blended)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    blended.alpha = dict(zip(["0", "4", "8", "13"], alphas, strict=True))
    assert relative(PaperChain(blended)(x, alphas), blended(x)) < 1e-12


@pytest.mark.parametrize("alpha", [1, 0.75, 0.25, 0])
def test_a_residual_stream_has_a_narrow_one_beside_it(alpha: float) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        x = x + m.conv2(m.bn(m.conv1(x)).relu())
        return m.head(x)

    layers = {"stem": nn.Conv2d(3, 8, 3), "conv1": nn.Conv2d(8, 6, 3, padding=1)}
    layers |= {"bn": nn.BatchNorm2d(6), "conv2": nn.Conv2d(6, 8, 1), "head": nn.Conv2d(8, 2, 3)}
    model = Net(run, **layers).double().eval()
    blended = scramble(attached(model))
    assert isinstance(blended, bp.Blended)
    blended.alpha = alpha
    wide, twin = blended.model, blended.twin
    a = {
        k: one_by_one(blended.reduce.get_submodule(k).weights[0])
        for k in ("stem", "conv1", "conv2")
    }
    b = {
        k: one_by_one(blended.expand.get_submodule(k).weights[0])
        for k in ("conv1", "conv2", "head")
    }

    def mix(u: Tensor, narrow: Tensor, consumer: str) -> Tensor:
        return alpha * u + (1 - alpha) * b[consumer](narrow)

    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    z = wide.stem(x)
    stream, narrow = z.relu(), a["stem"](z).relu()
    z1 = wide.conv1(mix(stream, narrow, "conv1"))
    inner, inner_narrow = wide.bn(z1).relu(), twin.bn(a["conv1"](z1)).relu()
    z2 = wide.conv2(mix(inner, inner_narrow, "conv2"))
    expected = wide.head(mix(stream + z2, narrow + a["conv2"](z2), "head"))
    assert relative(expected, blended(x)) < 1e-12


def sliced(model: nn.Sequential, kept: dict[int, Tensor]) -> nn.Sequential:
    """Prune a VGG the classic way, by keeping some output channels of each layer."""
    small = copy.deepcopy(model)
    before = torch.arange(3)
    for start in (0, 4, 8):
        layer, norm, keep = small[start], small[start + 1], kept[start]
        small[start] = nn.Conv2d(len(before), len(keep), 3, padding=1)
        small[start].weight.data = layer.weight.data[keep][:, before]
        small[start].bias.data = layer.bias.data[keep]
        small[start + 1] = nn.BatchNorm2d(len(keep))
        for name, value in norm.state_dict().items():
            small[start + 1].state_dict()[name].copy_(value[keep] if value.dim() else value)
        before = keep
    for index, keep in ((13, kept[13]), (16, torch.arange(5))):
        layer = small[index]
        small[index] = nn.Linear(len(before), len(keep))
        small[index].weight.data = layer.weight.data[keep][:, before]
        small[index].bias.data = layer.bias.data[keep]
        before = keep
    return small.eval()


LAYERS = (0, 4, 8, 13)


def best(scores: Tensor, count: int) -> Tensor:
    return torch.tensor(sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count]))


@pytest.mark.parametrize(("init", "power"), [("l1", 1), ("l2", 2)])
def test_alpha_0_is_classic_pruning(init: str, power: int) -> None:
    model = scramble(vgg()).eval()
    norms = {i: sum(model[i].weight.detach().abs().flatten(1).T ** power) for i in LAYERS}
    kept = {i: best(norms[i], len(norms[i]) // 2) for i in LAYERS}
    assert any(keep.tolist() != list(range(len(keep))) for keep in kept.values())
    blended = attached(model, init=init)
    blended.alpha = 0
    x = torch.randn(4, 3, 8, 8)
    expected = sliced(model, kept)(x)
    assert relative(expected, blended(x)) < 1e-5
    small = bp.collapse(blended)
    assert relative(expected, small(x)) < 1e-5
    for name, value in sliced(model, kept).state_dict().items():
        assert torch.equal(small.state_dict()[name], value)


def test_l1_adds_up_over_all_producers_of_a_group() -> None:
    model = scramble(resnet()).eval()
    total = sum(
        model.get_submodule(name).weight.detach().abs().sum((1, 2, 3))
        for name in ("0", "3.conv2", "4.conv2")
    )
    blended = attached(model)
    for name in ("0", "3.conv2", "4.conv2"):
        chosen = blended.reduce.get_submodule(name).weights[0].argmax(1)
        assert chosen.tolist() == best(total, 4).tolist()
    narrow = blended.twin.get_submodule("1").weight
    assert torch.equal(narrow, model[1].weight[best(total, 4)])


def test_a_criterion_of_ones_own() -> None:
    seen: dict[str, GroupWeights] = {}

    def last(group: GroupWeights) -> Tensor:
        seen[group.name] = group
        return torch.arange(group.width)

    model = scramble(vgg()).eval()
    blended = attached(model, init=last)
    blended.alpha = 0
    kept = {i: torch.arange(len(model[i].weight) // 2, len(model[i].weight)) for i in LAYERS}
    x = torch.randn(4, 3, 8, 8)
    assert relative(sliced(model, kept)(x), blended(x)) < 1e-5
    assert [(g.name, g.width) for g in seen.values()] == [
        ("0", 8),
        ("4", 12),
        ("8", 16),
        ("13", 20),
    ]
    assert torch.equal(seen["4"].producers[0], model[4].weight.flatten(1))
    assert torch.equal(seen["4"].norms[0], model[5].weight) and not seen["13"].norms


def test_criteria() -> None:
    first = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
    group = GroupWeights("g", 2, (first, torch.tensor([[2.0], [-2.0]])), ())
    assert l1(group).tolist() == [9.0, 3.0]
    assert torch.allclose(l2(group), torch.tensor([29.0, 5.0]).sqrt())


def group_of(*producers: Tensor, norms: Any = (), **options: Any) -> GroupWeights:
    return GroupWeights("g", len(producers[0]), producers, tuple(norms), **options)


def test_bn_scale_adds_up_over_all_norms() -> None:
    scales = [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([-3.0, 0.0, 0.25])]
    assert bn_scale(group_of(torch.ones(3, 2), norms=scales)).tolist() == [4.0, 2.0, 0.75]
    model = scramble(resnet()).eval()
    total = sum(model.get_submodule(n).weight.abs() for n in ("1", "3.bn2", "4.bn2")).detach()
    blended = attached(model, init="bn_scale")
    chosen = blended.reduce.get_submodule("3.conv2").weights[0].argmax(1)
    assert chosen.tolist() == best(total, 4).tolist()


def test_bn_scale_needs_norms() -> None:
    with pytest.raises(bp.PruneError, match="init 'bn_scale' needs a norm with a weight behind 4"):
        attached(scramble(without_norm()), init="bn_scale")


def test_geometric_median_by_loops() -> None:
    """The filter in the middle of all is the first to go, however large it is."""
    first, second = torch.randn(5, 3), torch.randn(5, 2)
    rows = [[*a, *b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    expected = [sum(math.dist(row, other) for other in rows) for row in rows]
    found = geometric_median(group_of(first, second))
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    line = torch.tensor([[9.0], [10.0], [11.0], [1.0]]) + 100
    assert int(geometric_median(group_of(line)).argmin()) in (0, 1)
    model = scramble(vgg()).eval()
    weights = model[4].weight.detach().flatten(1)
    far = torch.stack([(weights - row).square().sum(1).sqrt().sum() for row in weights])
    chosen = attached(model, init="geometric_median").reduce.get_submodule("4").weights[0].argmax(1)
    assert chosen.tolist() == best(far, 6).tolist()


def test_taylor_by_hand() -> None:
    """(3·1 − 4·2 + 2·5 + 0.5·4 + 6·1)² and (1·1 + 0·1 − 2·1 − 1·1 + 2·3)²; no gradient is 0."""
    group = group_of(
        *(torch.tensor([[3.0, -4.0], [1.0, 0.0]]), torch.tensor([[2.0], [-2.0]]), torch.ones(2, 1)),
        norms=[torch.tensor([0.5, -1.0])],
        biases=(torch.tensor([[6.0], [2.0]]), torch.ones(2, 1)),
        producer_gradients=(
            *(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([[5.0], [1.0]]), None),
        ),
        norm_gradients=(torch.tensor([4.0, 1.0]),),
        bias_gradients=(torch.tensor([[1.0], [3.0]]), None),
    )
    assert taylor(group).tolist() == [169.0, 16.0]


def grown(layers: Sequence[nn.Module], shape: tuple[int, ...]) -> nn.Sequential:
    """Return a model with the gradients of two batches added up, as a user leaves them."""
    model = nn.Sequential(*layers)
    scramble(model).eval()
    for seed in range(2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        model(x).square().mean().backward()
    return model


def test_taylor_reads_the_gradients_of_the_model() -> None:
    """The score is the squared derivative of the loss for a gate on the channel."""
    layers = (nn.Conv2d(3, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Tanh())
    model = grown([*layers, nn.Conv2d(6, 2, 1)], IMAGE)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    blended = attached(model, init="taylor")
    gates = [torch.ones(1, width, 1, 1, requires_grad=True) for width in (8, 6)]
    loss = torch.zeros(())
    for seed in range(2):
        x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed))
        z = model[2]((model[0](x) * gates[0]).tanh())
        loss = loss + model[4]((z * gates[1]).tanh()).square().mean()
    first, second = (g.flatten().square() for g in torch.autograd.grad(loss, gates))
    chosen = blended.reduce.get_submodule("0").weights[0].argmax(1)
    wanted = torch.cat([best(half, 2) + 4 * i for i, half in enumerate(first.chunk(2))])
    assert chosen.tolist() == wanted.tolist()
    rows = [torch.nonzero(w)[:, 1] for w in blended.reduce.get_submodule("2").weights]
    assert blended.reduce.get_submodule("2").pieces[0].blocks == 2
    wanted = torch.cat([best(half, len(rows[0]) // 2) for half in second.chunk(2)])
    assert rows[0].tolist() == wanted.tolist()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, before[name])
    assert all(p.grad is None for p in blended.parameters())


def test_taylor_sees_a_flattened_norm_and_a_frozen_layer() -> None:
    """A group's weights come with gradients of the same shapes, None where there are none."""
    seen: dict[str, GroupWeights] = {}

    def keep(group: GroupWeights) -> Tensor:
        seen[group.name] = group
        return taylor(group)

    model = scramble(resnet()).eval()
    model.get_submodule("3.conv2").weight.requires_grad_(False)
    model(torch.randn(IMAGE)).square().mean().backward()
    attached(model, init=keep)
    for group in seen.values():
        pairs = [
            *zip(group.producers, group.producer_gradients, strict=True),
            *zip(group.norms, group.norm_gradients, strict=True),
            *zip(group.biases, group.bias_gradients, strict=True),
        ]
        assert all(g is None or g.shape == w.shape for w, g in pairs)
    assert [g is None for g in seen["0"].producer_gradients] == [False, True, False]
    assert torch.equal(seen["0"].norm_gradients[0], model[1].weight.grad)


def test_taylor_of_a_norm_in_training_mode_is_that_of_a_gate_behind_it() -> None:
    model = scramble(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    x, gate = torch.randn(IMAGE), torch.ones(1, 6, 1, 1, requires_grad=True)
    model.train()(x).square().mean().backward()
    seen: list[Tensor] = []

    def keep(group: GroupWeights) -> Tensor:
        seen.append(taylor(group))
        return seen[-1]

    attached(model.eval(), init=keep)
    model.train()
    loss = model[3](model[2](model[1](model[0](x)) * gate)).square().mean()
    expected = torch.autograd.grad(loss, gate)[0].flatten().square()
    torch.testing.assert_close(seen[0].float(), expected, rtol=1e-3, atol=1e-9)


def test_taylor_needs_gradients() -> None:
    with pytest.raises(bp.PruneError, match="init 'taylor' needs gradients of 0: call backward"):
        attached(scramble(vgg()), init="taylor")


def test_grouped_layers_keep_as_many_channels_of_each_group() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 4, 1))
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0)[:, None, None, None].expand(12, 3, 1, 1))
    blended = attached(model)
    reduce = blended.reduce.get_submodule("0").weights[0]
    assert reduce.argmax(1).tolist() == [2, 3, 6, 7, 10, 11]


def test_random_start() -> None:
    model = scramble(vgg()).eval()
    blended = attached(model, init="random")
    reduce = blended.reduce.get_submodule("4").weights[0]
    assert reduce.shape == (6, 12) and (reduce != 0).all() and reduce.std() > 0.05
    twin = blended.twin.get_submodule("5")
    assert torch.equal(twin.weight, torch.ones(6)) and torch.equal(
        twin.running_mean, torch.zeros(6)
    )
    assert torch.equal(twin.running_var, torch.ones(6)) and not twin.bias.any()
    torch.manual_seed(1)
    other = attached(model, init="random").reduce.get_submodule("4").weights[0]
    assert not torch.equal(reduce, other)
    blended.alpha = 0
    x = torch.randn(IMAGE)
    assert relative(spelled_out(blended)(x), bp.collapse(blended)(x)) < 1e-4


@pytest.mark.parametrize("init", ["l3", "", None, 5, ["l1"]])
def test_unknown_start(init: Any) -> None:
    told = rf"init \(={re.escape(repr(init))}\) must be 'random', 'l0', 'l1', .* or a function"
    with pytest.raises(bp.PruneError, match=told):
        attached(vgg(), init=init)


def test_bad_scores() -> None:
    with pytest.raises(bp.PruneError, match=r"shape \(3,\) for 0: one a channel, shape \(8,\)"):
        attached(vgg(), init=lambda group: torch.ones(3))
    with pytest.raises(bp.PruneError, match=r"scores of shape \(8, 1\) for 0"):
        attached(vgg(), init=lambda group: torch.ones(group.width, 1))
    with pytest.raises(bp.PruneError, match=r"scores of shape \(\) for 0"):
        attached(vgg(), init=lambda group: [1.0] * group.width)
    with pytest.raises(bp.PruneError, match="NaN scores for 4"):
        attached(vgg(), init=lambda g: torch.full((g.width,), float("nan" if g.name == "4" else 1)))


def without_norm() -> nn.Module:
    return nn.Sequential(OrderedDict((k, m) for k, m in vgg().named_children() if k != "5"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 3), "layer 0 is missing"),
        (without_norm(), "layer 5 is missing"),
        (vgg((8, 10, 16)), r"layer 4 is Conv2d\(in_channels=8, out_channels=10, .* planned was"),
        (vgg((8, 12)), "layer 8 is Flatten"),
        (resnet(), "layer 3 is missing|layer 3 is"),
    ],
)
def test_the_plan_of_another_model(other: nn.Module, message: str) -> None:
    plan = bp.plan(vgg(), torch.randn(IMAGE))
    with pytest.raises(bp.PruneError, match=f"the plan is of another model: {message}"):
        bp.attach(other, plan)


def test_the_plan_of_a_model_of_the_same_architecture() -> None:
    plan, model = bp.plan(vgg(), torch.randn(IMAGE)), scramble(vgg()).eval()
    x = torch.randn(IMAGE)
    assert torch.equal(bp.attach(model, plan)(x), model(x))


def test_a_width_that_forward_computes_by_itself() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y.view(x.size(0), x.size(0) * 4, -1).unsqueeze(3))

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    front = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), model)
    groups = {group.name: group for group in bp.plan(front, torch.randn(IMAGE)).groups}
    assert "computes its width from sizes" in str(groups["2.a"].reason)
    assert groups["0"].pruned


def changed_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.view(2, -1).mul_(2)
    return m.b(y)


def changed_under_another_name(m: Any, x: Tensor) -> Tensor:
    y = z = m.a(x)
    y += 1
    return m.b(y * z)


@pytest.mark.parametrize("run", [changed_view, changed_under_another_name])
def test_changes_in_place_reach_every_name(run: Callable[..., Tensor]) -> None:
    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    front = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), model).double()
    x = torch.randn(IMAGE).double()
    blended = bp.attach(front, bp.plan(front, x))
    assert torch.equal(blended(x), front(x))
    scramble(blended)
    blended.alpha = 0
    assert relative(spelled_out(blended)(x), bp.collapse(blended)(x)) < 1e-10


def test_what_a_trace_loses_is_noticed() -> None:
    front = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1))
    front.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(bp.PruneError, match="at alpha = 1 differs from the model: forward does"):
        bp.attach(front, bp.plan(front, torch.randn(IMAGE)))


def test_tensors_made_by_forward() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
        return m.b(y.relu() + torch.tensor(0.5))

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    x = torch.randn(IMAGE)
    attributes = set(vars(model))
    blended = attached(model)
    assert set(vars(model)) == attributes
    assert torch.equal(blended(x), model(x))
    assert not [key for key in blended.state_dict() if "constant" in key]
    blended.alpha = 0
    scramble(blended)
    small = bp.collapse(blended)
    assert relative(spelled_out(blended)(x), small(x)) < 1e-5
    assert set(vars(small)) == attributes | {"_full_shapes"}
    narrow = blended.double().reduce.a.weights[0]
    z = blended.model.a(x.double() * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    y = torch.einsum("ko,nohw->nkhw", narrow, z).relu() + 0.5
    expected = blended.model.b(torch.einsum("ok,nkhw->nohw", blended.expand.b.weights[0], y))
    assert relative(expected, blended(x.double())) < 1e-12


def test_a_model_that_cannot_be_copied() -> None:
    model = vgg()
    model.lock = threading.Lock()
    with pytest.raises(bp.PruneError, match="Sequential cannot be copied by deepcopy"):
        bp.plan(model, torch.randn(IMAGE))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_model(training: bool) -> None:
    blended = attached(resnet().train(training))
    norms = [m for m in blended.twin.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 9
    for module in (blended, *blended.model.modules(), *norms):
        assert module.training is training


def test_attach_does_not_change_the_model() -> None:
    model = scramble(vgg()).train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x = torch.randn(IMAGE)
    plan = bp.plan(model, x)
    random = torch.get_rng_state()
    blended = bp.attach(model, plan)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert modes == [m.training for m in blended.model.modules()]
    assert blended.training and not blended.twin.get_submodule("1").training
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in blended.parameters()
    }


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf"), "half", None])
def test_alpha_out_of_range(alpha: Any) -> None:
    blended = attached(vgg())
    blended.alpha = 0.5
    for value in (alpha, {"0": 0.0, "4": alpha}):
        with pytest.raises(bp.PruneError, match=rf"alpha \(={alpha}\) must be in \[0, 1\]"):
            blended.alpha = value
        assert set(blended.alpha.values()) == {0.5}


def test_alpha_of_unknown_groups() -> None:
    blended = attached(vgg())
    for name in ("head", "16", "1", ""):
        with pytest.raises(bp.PruneError, match=f"no pruned group is named, .* '{name}'"):
            blended.alpha = {"0": 0.5, name: 0.5}
    assert set(blended.alpha.values()) == {1.0}


def test_alpha_by_group_layer_and_module() -> None:
    blended = attached(resnet())
    assert list(blended.alpha) == ["0", "3.conv1", "4.conv1", "5.down", "5.conv1", "6.conv1"]
    blended.alpha = {"3.conv1": 0.25, "6.conv2": 0.5}
    assert list(blended.alpha.values()) == [1, 0.25, 1, 0.5, 1, 1]
    blended.alpha = {"3": 0}
    assert list(blended.alpha.values()) == [0, 0, 1, 0.5, 1, 1]
    assert repr(blended) == "Blended(Sequential, groups=6, alpha=[0.0, 0.5, 1.0])"
    blended.alpha = 0.75
    assert set(blended.alpha.values()) == {0.75}
    assert torch.equal(blended.alphas, torch.full((6,), 0.75))


def split_groups() -> nn.Module:
    """`c` makes channels of two groups, `a` with the layer `a` and `c` with the layer `b`."""

    def run(m: Any, x: Tensor) -> Tensor:
        a, c = m.a(x), m.c(x)
        return m.d(torch.cat([a, m.b(x)], 1) + c)

    return Net(
        run,
        c=nn.Conv2d(3, 10, 1),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 6, 1),
        d=nn.Conv2d(10, 2, 1),
    )


def test_what_alpha_reads_can_be_written_back() -> None:
    blended = attached(split_groups())
    values = {name: 0.25 * (i + 1) for i, name in enumerate(blended.alpha)}
    assert list(values) == ["a", "c"]
    blended.alpha = values
    assert blended.alpha == values
    for name in values:
        blended.alpha = {name: 0.875}
        assert [n for n, v in blended.alpha.items() if v == 0.875] == [name]
        blended.alpha = values


def test_branch_only() -> None:
    blended = attached(split_groups())
    x = torch.randn(IMAGE)
    before = {name: 0.25 * (i + 1) for i, name in enumerate(blended.alpha)}
    blended.alpha = before
    mixed = blended(x)
    with blended.branch_only():
        assert set(blended.alpha.values()) == {0.0}
        assert relative(spelled_out(blended.double())(x.double()), blended(x.double())) < 1e-6
    blended.float()
    assert blended.alpha == before
    assert torch.equal(blended(x), mixed)
    with pytest.raises(RuntimeError), blended.branch_only():
        raise RuntimeError
    assert blended.alpha == before


def test_branch_only_leaves_alone_what_has_not_begun() -> None:
    blended = attached(vgg())
    blended.alpha = {"0": 0.5, "8": 0}
    with blended.branch_only():
        assert blended.alpha == {"0": 0, "4": 1, "8": 0, "13": 1}
    assert blended.alpha == {"0": 0.5, "4": 1, "8": 0, "13": 1}
    blended.alpha = 1
    with blended.branch_only():
        assert set(blended.alpha.values()) == {0.0}


def test_branch_only_with_fresh_statistics() -> None:
    blended = scramble(attached(vgg())).train()
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0.5
    blended.model.get_submodule("1").eval()
    modes = [m.training for m in blended.modules()]
    state = {k: v.clone() for k, v in blended.state_dict().items()}
    batches = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    reduce = blended.reduce.get_submodule("0").weights[0]
    random = torch.get_rng_state()
    with torch.no_grad():
        narrow = [torch.einsum("ko,nohw->nkhw", reduce, blended.model[0](x)) for x in batches]
    means = torch.stack([z.mean((0, 2, 3)) for z in narrow])
    variances = torch.stack([z.transpose(0, 1).flatten(1).var(1) for z in narrow])
    with blended.branch_only(batches):
        norm = blended.twin.get_submodule("1")
        assert torch.allclose(norm.running_mean, means.mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var, variances.mean(0), atol=1e-5)
        assert modes == [m.training for m in blended.modules()]
        assert set(blended.alpha.values()) == {0.0}
    assert modes == [m.training for m in blended.modules()]
    assert all(torch.equal(v, state[k]) for k, v in blended.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", ["0", "4", "8", "13"])
def test_one_group_at_a_time(name: str) -> None:
    """With one α at 0 and the others at 1, only that group's channels come from its branch."""
    model = scramble(vgg().double()).eval()
    blended = attached(model)
    scramble(blended, seed=3)
    blended.alpha = {name: 0}
    only = copy.deepcopy(blended)
    consumer = {"0": "4", "4": "8", "8": "13", "13": "16"}[name]
    for part, keep in ((only.reduce, name), (only.expand, consumer)):
        part._modules = {keep: part.get_submodule(keep)}
    norm = str(int(name) + 1)
    only.twin._modules = {norm: only.twin.get_submodule(norm)} if name != "13" else {}
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert relative(spelled_out(only)(x), blended(x)) < 1e-12


def test_channels_that_stay_have_no_jump_at_alpha_0() -> None:
    """A norm over pruned and kept channels has a twin: both train, so α → 0 is continuous."""
    model = Net(
        lambda m, x: m.b(m.n(torch.cat([m.a(x), m.stays(x)], 1)).relu()),
        a=nn.Conv2d(3, 8, 3),
        stays=nn.Conv2d(3, 6, 3),
        n=nn.BatchNorm2d(14),
        b=nn.Conv2d(14, 4, 3),
    )
    x = torch.randn(4, 3, 8, 8)
    blended = bp.attach(model, bp.plan(model, x, exclude=["stays"]))
    blended.alpha = 0.5
    blended(x).square().sum().backward()
    for norm in (blended.model.n, blended.twin.n):
        assert norm.weight.grad[-6:].abs().min() > 0
    scramble(blended)
    blended.eval()
    for end, other in ((0, 2**-20), (1, 1 - 2**-20)):
        blended.alpha = other
        close = blended(x)
        blended.alpha = end
        assert relative(blended(x), close) < 1e-4


def test_deepcopy_is_independent() -> None:
    blended = attached(scramble(vgg()))
    blended.alpha = {"0": 0.5, "4": 0}
    blended.eval()
    twin = copy.deepcopy(blended)
    x = torch.randn(IMAGE)
    assert twin.alpha == blended.alpha and torch.equal(twin(x), blended(x))
    expected = blended(x)
    scramble(twin)
    twin.alpha = 0
    assert torch.equal(blended(x), expected) and not torch.equal(twin(x), expected)
    assert blended.alpha["0"] == 0.5
    assert relative(spelled_out(twin)(x), bp.collapse(twin)(x)) < 1e-4


def test_a_trained_copy_can_be_collapsed() -> None:
    blended = attached(vgg())
    blended.alpha = 0
    optimizer = torch.optim.SGD(blended.parameters(), 0.01)
    blended(torch.randn(IMAGE)).sum().backward()
    optimizer.step()
    assert isinstance(bp.collapse(copy.deepcopy(blended)), nn.Sequential)


def test_pickle() -> None:
    blended = attached(scramble(vgg())).eval()
    scramble(blended)
    blended.alpha = {"0": 0.5, "4": 0}
    read = pickle.loads(pickle.dumps(blended))
    x = torch.randn(IMAGE)
    assert read.alpha == blended.alpha and torch.equal(read(x), blended(x))
    read.alpha = 0
    assert relative(spelled_out(read)(x), bp.collapse(read)(x)) < 1e-4


def test_state_dict_restores_alpha() -> None:
    model = scramble(vgg()).eval()
    first, second = attached(model), attached(model)
    scramble(first, seed=4)
    first.alpha = {"0": 0.7, "4": 0.3, "8": 0.0}
    second.alpha = 0.9
    x = torch.randn(IMAGE)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert second.alpha == first.alpha == {"0": 0.7, "4": 0.3, "8": 0.0, "13": 1.0}
    assert torch.equal(first(x), second(x))
    assert relative(spelled_out(first)(x), first(x)) > 1e-3
    holder = nn.ModuleDict({"net": attached(model)})
    holder.load_state_dict({f"net.{k}": v for k, v in first.state_dict().items()}, assign=True)
    assert holder["net"].alpha == first.alpha and torch.equal(holder["net"](x), first(x))


def test_state_dict_restores_alpha_of_a_decay() -> None:
    """In single precision 0.95³ is 0.85737502…; what is read back is what was set."""
    first, second = attached(vgg()), attached(vgg())
    for alpha in (*bp.multiplicative(0.05, 0.05), *bp.steps(0.1), 0.000001):
        first.alpha = alpha
        second.load_state_dict(first.state_dict())
        assert set(second.alpha.values()) == {alpha}


def test_autocast() -> None:
    model = scramble(vgg()).eval()
    blended = attached(model)
    x = torch.randn(IMAGE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blended(x), model(x))
        for alpha in (0.5, 0):
            blended.alpha = alpha
            low = blended(x)
            with torch.autocast("cpu", enabled=False):
                full = blended(x)
            assert low.dtype == torch.bfloat16
            assert 0 < relative(full, low.float()) < 0.05
    blended.train()
    for alpha in (0.5, 0):
        blended.alpha = alpha
        blended.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            blended(torch.randn(4, 3, 8, 8)).sum().backward()
        assert blended.reduce.get_submodule("0").weights[0].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    blended = attached(vgg().to(dtype)).eval()
    x = torch.randn(IMAGE, dtype=dtype)
    for alpha in (1, 0.5, 0):
        blended.alpha = alpha
        assert blended(x).dtype == dtype
        assert relative(blended.double()(x.double()), blended.to(dtype)(x).double()) < 0.1


def test_layers_of_different_dtypes() -> None:
    model = Net(
        lambda m, x: m.c(m.b(m.a(x).relu().float()).relu()),
        a=nn.Conv2d(3, 8, 3).bfloat16(),
        b=nn.Conv2d(8, 8, 3),
        c=nn.Conv2d(8, 4, 3),
    )
    x = torch.randn(IMAGE, dtype=torch.bfloat16)
    blended = bp.attach(model, bp.plan(model, x))
    for alpha in (1, 0.5, 0):
        blended.alpha = alpha
        assert blended(x).dtype == torch.float32
    small = bp.collapse(blended)
    assert [p.dtype for p in small.parameters()] == [p.dtype for p in model.parameters()]


def test_what_is_no_plan_or_blended_model() -> None:
    with pytest.raises(bp.PruneError, match=r"plan \(a float\) must be made by bp\.plan"):
        bp.attach(vgg(), 0.5)
    with pytest.raises(bp.PruneError, match=r"blended \(a Sequential\) must be made by bp\.attach"):
        bp.collapse(vgg())


def test_channels_last() -> None:
    model = scramble(vgg()).eval()
    blended = scramble(attached(model))
    x = torch.randn(4, 3, 8, 8)
    for alpha in (1, 0.5, 0):
        blended.alpha = alpha
        expected = copy.deepcopy(blended)(x)
        last = copy.deepcopy(blended).to(memory_format=torch.channels_last)
        assert relative(expected, last(x.to(memory_format=torch.channels_last))) < 1e-5


def test_compile_once_for_all_alpha() -> None:
    blended = attached(scramble(vgg())).eval()
    compilations = 0

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(blended, backend=backend, fullgraph=True)
    x = torch.randn(IMAGE)
    outputs = []
    with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for step in range(10, -1, -1):
            blended.alpha = step / 10
            outputs.append(compiled(x))
            assert relative(blended(x), outputs[-1]) < 1e-6
    assert compilations == 3
    assert all(relative(a, b) > 1e-4 for a, b in pairwise(outputs))
    torch._dynamo.reset()


def test_compile_trains() -> None:
    torch._dynamo.reset()
    blended = attached(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    reference = copy.deepcopy(blended)
    compiled = torch.compile(blended, backend="aot_eager", fullgraph=True)
    x = torch.randn(IMAGE)
    for alpha in (0.5, 0):
        for net, run in ((blended, compiled), (reference, reference)):
            net.zero_grad()
            net.alpha = alpha
            run(x).square().sum().backward()
        for p, q in zip(blended.parameters(), reference.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


class Modes(nn.Module):
    """Functional dropout, and a head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1)
        self.norm, self.aux = nn.BatchNorm2d(12), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.dropout(self.a(x).relu(), 0.5, self.training)
        y = self.c(self.norm(self.b(x)).relu())
        return (y, self.aux(x)) if self.training else y


def test_training_and_evaluation_differ() -> None:
    model = scramble(Modes()).train()
    plan = bp.plan(model, torch.randn(IMAGE))
    assert [g.name for g in plan.groups if g.pruned] == ["a", "b"]
    blended = bp.attach(model, plan)
    x = torch.randn(IMAGE)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    found = blended(x)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    assert torch.equal(blended.eval()(x), model.eval()(x))
    blended.alpha = 0
    scramble(blended)
    small, reference = bp.collapse(blended), spelled_out(blended)
    assert relative(reference(x), small(x)) < 1e-4
    assert torch.equal(blended(x), blended(x))
    for net in (small, reference, blended):
        net.train()
    outputs = []
    for net in (reference, small, blended):
        torch.manual_seed(4)
        outputs.append(net(x))
    for first, second in zip(outputs[0], outputs[1], strict=True):
        assert relative(first, second) < 1e-4
    assert relative(outputs[0][1], outputs[2][1]) < 1e-4
    assert not torch.equal(blended(x)[1], blended(x)[1])


class Multi(nn.Module):
    """Two inputs, an optional mask, an option that is a tuple, and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 8, 3)
        self.c, self.d = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(
        self,
        image: Tensor,
        depth: Tensor,
        mask: Tensor | None = None,
        size: tuple[int, int] = (4, 3),
        *,
        scale: float = 1.0,
    ) -> dict[str, Any]:
        y = self.a(image) + self.b(depth)
        if mask is not None:
            y = y * mask
        y = F.adaptive_avg_pool2d(y.relu(), size) * scale
        z = self.c(y).relu()
        out = self.d(z)
        return {"out": out, "more": (out * 2, [z.shape[0], scale])}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", ["tuple", "dict", "scaled"])
def test_many_inputs_and_nested_outputs(form: str, masked: bool) -> None:
    model = scramble(Multi()).eval()
    inputs = {"image": torch.randn(2, 3, 8, 8), "depth": torch.randn(2, 2, 8, 8)}
    if masked:
        inputs["mask"] = torch.rand(2, 1, 6, 6)
    example: Any = tuple(inputs.values()) if form == "tuple" else inputs
    if form == "scaled":
        example = inputs | {"scale": 2.5}
    plan = bp.plan(model, example)
    assert [g.name for g in plan.groups if g.pruned] == ["a", "c"]
    blended = bp.attach(model, plan)

    def run(net: nn.Module) -> dict[str, Any]:
        return net(*example) if form == "tuple" else net(**example)

    expected, found = run(model), run(blended)
    assert list(found) == ["out", "more"] and isinstance(found["more"], tuple)
    assert torch.equal(found["out"], expected["out"])
    assert torch.equal(found["more"][0], expected["more"][0])
    assert found["more"][1] == [2, 2.5 if form == "scaled" else 1.0]
    blended.alpha = 0
    scramble(blended)
    assert relative(run(spelled_out(blended))["out"], run(bp.collapse(blended))["out"]) < 1e-4


def test_a_batch_of_another_size() -> None:
    """`squeeze()` drops the batch dimension of an example of one; other batches keep theirs."""
    model = Net(
        lambda m, x: m.c(m.b(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()).relu()),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Linear(8, 6),
        c=nn.Linear(6, 4),
    ).eval()
    blended = scramble(attached(model, (1, 3, 8, 8)))
    x = torch.randn(5, 3, 8, 8)
    for alpha in (1, 0.5, 0):
        blended.alpha = alpha
        one, many = blended(x[:1]), blended(x)
        assert one.shape == (4,) and relative(one, many[0]) < 1e-5
    assert relative(spelled_out(blended)(x), blended(x)) < 1e-5


def test_branches_cost_little_at_alpha_between() -> None:
    """Between 0 and 1 the wide layers run once, and the ends add their 1x1 maps."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(1, 3, 12, 12)
    blended = attached(model, (1, 3, 12, 12))
    blended.alpha = 0.5
    ends = 2 * 8 * 4 * 10 * 10
    assert counted_macs(blended, x) == counted_macs(model, x) + ends


def test_gradients_where_alpha_says() -> None:
    model = vgg().eval()
    blended = attached(model)
    x = torch.randn(IMAGE)
    for alpha in (1, 0):
        blended.alpha = alpha
        blended.zero_grad()
        blended(x).square().sum().backward()
        grads = {name for name, p in blended.named_parameters() if p.grad is not None}
        parts = {name.partition(".")[0] for name in grads}
        assert parts == ({"model"} if alpha else {"model", "reduce", "expand", "twin"})
        wide_norms = {f"model.{i}.{kind}" for i in (1, 5, 9) for kind in ("weight", "bias")}
        assert wide_norms & grads == (wide_norms if alpha else set())


def test_a_plan_of_a_shallower_model() -> None:
    deep = nn.Sequential(*vgg(), nn.Linear(5, 5))
    with pytest.raises(bp.PruneError, match=f"another model: it has no layer {len(deep) - 1}"):
        bp.attach(deep, bp.plan(vgg(), torch.randn(2, 3, 8, 8)))


def test_draws_that_nothing_reads_are_no_difference() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        if m.training:
            F.dropout(x, 0.5)
        return m.b(F.dropout(y, 0.5, m.training))

    model = Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    x = torch.randn(IMAGE)
    before = torch.get_rng_state()
    blended = bp.attach(model, bp.plan(model, x))
    assert torch.equal(torch.get_rng_state(), before)
    blended.alpha = 0
    assert bp.collapse(blended).a.out_channels == 4

"""Products of tensors, functional layers, recurrent layers and layers that compute their weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.inputs import tensors
from branchprune.graph.twin_layers import narrow_layer

IMAGE = (2, 3, 6, 6)
Row = tuple[Callable[[], nn.Module], tuple[str, ...]]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def net(run: Callable[..., object], narrow: str, **layers: Any) -> Row:
    """Describe a network between a (3 to 8) and b (8 to 4), and the groups that must shrink."""

    def make() -> nn.Module:
        made = Net(run, a=conv(3, 8), b=conv(8, 4))
        for name, layer in layers.items():
            setattr(made, name, layer())
        return made

    return make, tuple(narrow.split())


class Standardised(nn.Conv2d):
    """Weight standardisation with a gain a channel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = self.gain * weight / (1e-3 + weight.std((1, 2, 3), keepdim=True))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def nonlocal_block(m: Any, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    q, k, v = m.q(x).flatten(2), m.k(x).flatten(2), m.v(x).flatten(2)
    attention = torch.softmax(q.transpose(1, 2) @ k, -1)
    return m.b(x + m.p((v @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])))


def heads(m: Any, x: Tensor) -> Tensor:
    y = m.qkv(tokens(m.a(x)))
    q, k, v = y.reshape(len(y), y.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return m.fc(m.p(y).relu())


def by_hand(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(tokens(m.a(x))) for layer in (m.q, m.k, m.v))
    scores = torch.einsum("bnd,bmd->bnm", F.softplus(q) * q.shape[-1] ** -0.5, k)
    return m.fc(torch.bmm(scores.softmax(-1), v))


def spatial_gate(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x * m.gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def centred(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y - y.mean(1, keepdim=True))


def recurrent(m: Any, x: Tensor) -> Tensor:
    y, (h, _) = m.rnn(tokens(m.a(x)))
    return m.fc(y) + m.last(h[-1])[:, None]


def stream_over_heads(m: Any, x: Tensor) -> Tensor:
    x = tokens(m.a(x))
    n, length, width = x.shape
    q, k = (layer(x).view(n, length, 2, width // 2).transpose(1, 2) for layer in (m.q, m.k))
    return m.fc(x) + (q @ k.transpose(2, 3)).mean((1, 3))[..., None]


LINEARS = {name: lambda: nn.Linear(8, 6) for name in "qk"}
CASES: dict[str, Row] = {
    "non-local block": net(
        nonlocal_block,
        "a q v",
        **{name: lambda: conv(8, 6) for name in "qk"},
        **{name: lambda: conv(8, 8) for name in "vp"},
    ),
    "attention with heads": net(
        heads,
        "a qkv p",
        qkv=lambda: nn.Linear(8, 24),
        p=lambda: nn.Linear(8, 8),
        fc=lambda: nn.Linear(8, 3),
    ),
    "attention by hand": net(
        by_hand, "a q v", **LINEARS, v=lambda: nn.Linear(8, 10), fc=lambda: nn.Linear(10, 3)
    ),
    "heads of the width of the stream": net(
        stream_over_heads,
        "a",
        **{name: lambda: nn.Linear(8, 8) for name in "qk"},
        fc=lambda: nn.Linear(8, 3),
    ),
    "centred": net(centred, "a"),
    "spatial attention": net(spatial_gate, "a", gate=lambda: conv(2, 1, 3, padding=1)),
    "values weighted by positions": net(
        lambda m, x: m.b((m.a(x).flatten(2) @ m.mixing).unflatten(2, (6, 6))),
        "a",
        mixing=weight(36, 36),
    ),
    "product with a parameter": net(lambda m, x: tokens(m.a(x)) @ m.w, "a", w=weight(8, 3)),
    "functional convolutions": net(
        lambda m, x: m.b(F.conv2d(F.conv2d(m.a(x), m.w1, padding=1).relu(), m.w2, m.bias)),
        "a w1 w2",
        w1=weight(10, 8, 3, 3),
        w2=weight(8, 10, 1, 1),
        bias=weight(8),
    ),
    "functional convolution that makes the output": net(
        lambda m, x: F.conv2d(m.a(x), m.w), "a", w=weight(5, 8, 1, 1)
    ),
    "transposed functional convolution": net(
        lambda m, x: m.b(F.conv_transpose2d(m.a(x), m.w, stride=2)), "a w", w=weight(8, 8, 2, 2)
    ),
    "weights of a layer that is not called": net(
        lambda m, x: m.b(F.conv2d(m.a(x), m.c.weight, m.c.bias)), "a c.weight", c=lambda: conv(8, 8)
    ),
    "LSTM": net(
        recurrent,
        "a rnn",
        rnn=lambda: nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True),
        fc=lambda: nn.Linear(24, 3),
        last=lambda: nn.Linear(12, 3),
    ),
    "GRU whose states are the output": net(
        lambda m, x: m.rnn(tokens(m.a(x)))[0], "a", rnn=lambda: nn.GRU(8, 5, batch_first=True)
    ),
    "standardised weights": net(
        lambda m, x: m.b(m.d(m.c(m.a(x)).relu())),
        "a c d",
        c=lambda: Standardised(8, 12, 3, padding=1),
        d=lambda: Standardised(12, 8, 3, padding=1, groups=2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_branch_and_collapse(name: str) -> None:
    """What shrinks is as named, α = 1 is the model, and α = 0 is layers between matrices."""
    torch.manual_seed(0)
    make, narrow = CASES[name]
    model = scramble(make().double().eval())
    example, x = (torch.randn(IMAGE, dtype=torch.float64) for _ in range(2))
    plan = bp.plan(model, example)
    shrunk = {layer for group in plan.groups if group.pruned for layer in group.layers}
    assert {*narrow} <= shrunk, {group.name: group.reason for group in plan.groups}
    blended = bp.attach(model, plan)
    for training in (False, True):
        assert all(map(torch.equal, blended.train(training)(x), model.train(training)(x)))
    scramble(blended, seed=2)
    blended.alpha = 0.0
    small = bp.collapse(blended)
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
    for training in (False, True):
        nets = [each.train(training) for each in (spelled_out(blended), small, blended, model)]
        expected, found, branch, before = (tensors(each(x))[0] for each in nets)
        assert relative(expected, found) < 1e-10 > relative(expected, branch)
        assert relative(expected, before) > 1e-3


def test_paths_meet_where_channels_end() -> None:
    """Between 0 and 1 the scores are the weighted sum of those of both paths."""
    model = Net(lambda m, x: tokens(m.q(x)) @ m.k(x).flatten(2), q=conv(3, 8), k=conv(3, 8))
    model = model.double().eval()
    x = torch.randn(IMAGE, dtype=torch.float64)
    blended = scramble(bp.attach(model, bp.plan(model, x)), seed=1)
    branch = copy.deepcopy(blended)
    branch.alpha = 0.0
    blended.alpha = 0.25
    expected = 0.25 * blended.model(x) + 0.75 * branch(x)
    assert relative(expected, blended(x)) < 1e-10
    for mixing in ("group", "step", "sample"):
        blended.mixing = mixing
        blended.train()
        for found, *both in zip(blended(x), blended.model(x), branch(x), strict=True):
            assert min(relative(each, found) for each in both) < 1e-10
        blended.eval()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_narrow_recurrent_layer_is_a_selection(kind: type[nn.RNNBase]) -> None:
    """Where nothing reads what is dropped, what is kept is computed as before."""
    torch.manual_seed(0)
    wide = kind(5, 6, num_layers=2, bidirectional=True).double()
    inputs, hidden = torch.tensor([0, 2, 3]), torch.tensor([1, 2, 5])
    both = torch.cat([hidden, hidden + 6])
    for name, tensor in wide.named_parameters():
        if name.startswith("weight"):
            read = inputs if "ih_l0" in name else both if "ih_l1" in name else hidden
            dropped = [i for i in range(tensor.shape[1]) if i not in read]
            tensor.data[:, dropped] = 0
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    narrow = narrow_layer(wide, inputs, both)
    assert relative(wide(x)[0][..., both], narrow(x[..., inputs])[0]) < 1e-12


def test_gradients_reach_a_collapsed_recurrent_layer() -> None:
    """Its own list of weights holds the parameters that an optimizer is given."""
    model = CASES["LSTM"][0]()
    blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE)))
    blended.alpha = 0.0
    small = bp.collapse(blended)
    small(torch.randn(IMAGE)).sum().backward()
    assert all(weight.grad is not None for weight in small.rnn.parameters())


def test_groups_that_meet_are_collapsed_together() -> None:
    make, _ = CASES["attention by hand"]
    model = make()
    blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE)))
    blended.alpha = {"a": 0.0}
    bp.collapse(blended)
    make, _ = CASES["functional convolutions"]
    model = make()
    blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE)))
    blended.alpha = {"a": 0.0}
    with pytest.raises(bp.PruneError, match="meet in w1: bring all to alpha = 0"):
        bp.collapse(blended)


def test_saved_and_loaded(tmp_path: Any) -> None:
    for name in ("LSTM", "standardised weights", "weights of a layer that is not called"):
        make, _ = CASES[name]
        model = make().eval()
        blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE)))
        blended.alpha = 0.0
        small = bp.collapse(blended)
        bp.save(small, tmp_path / "small.safetensors")
        loaded = bp.load(make().eval(), tmp_path / "small.safetensors")
        x = torch.randn(IMAGE)
        assert torch.equal(loaded(x), small(x))


STAYS = {
    "its weight is computed": lambda m, x: m.b(F.conv2d(m.a(x), m.w.tanh())),
    "it fails at other widths": lambda m, x: m.b(F.conv2d(m.a(x), m.w[:, :4], groups=2)),
    "is read by `tanh`": lambda m, x: m.b(F.conv2d(m.a(x), m.w)) + m.w.tanh().mean(),
}


@pytest.mark.parametrize("reason", STAYS)
def test_what_stays(reason: str) -> None:
    model = nn.Sequential(conv(3, 6), conv(6, 3), Net(STAYS[reason], a=conv(3, 8), b=conv(8, 4)))
    model[2].w = nn.Parameter(torch.randn(8, 8, 1, 1))
    plan = bp.plan(model, torch.randn(IMAGE))
    found = {group.name: str(group.reason) for group in plan.groups}
    assert reason in found["2.a"] and found["0"] == "None"


def test_a_weight_that_is_read_along_other_dimensions_stays() -> None:
    """The product with its transpose hands on the channels that the other has read."""
    model = Net(lambda m, x: m.c(m.b(F.linear(m.a(x), m.w)).relu() @ m.w), a=nn.Linear(5, 8))
    model.b, model.c = nn.Linear(12, 12), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    model.w = nn.Parameter(torch.randn(12, 8))
    plan = bp.plan(model, torch.randn(2, 7, 5))
    stays = {group.name: str(group.reason) for group in plan.groups if not group.pruned}
    assert {*stays} == {"a", "b", "c.1", "w"} and "w is read by `matmul`" in stays["a"]


@pytest.mark.parametrize("length", [6, 7])
def test_any_number_of_positions(length: int) -> None:
    """With as many positions as channels are tried, a transposed tensor keeps its shape."""
    run = lambda m, x: (m.q(x) @ m.k(x).mT).softmax(-1) @ x  # noqa: E731
    layers = {"q": nn.Linear(8, 12), "k": nn.Linear(8, 12)}
    plan = bp.plan(Net(run, **layers), torch.randn(2, length, 8))
    assert [(group.width, group.kept) for group in plan.groups] == [(12, 6)]


def test_channels_of_layers_with_a_twin_are_counted() -> None:
    make, _ = CASES["LSTM"]
    plan = bp.plan(make(), torch.randn(IMAGE))
    assert plan.before.channels == 8 + 3 + 3 + 2 * 12

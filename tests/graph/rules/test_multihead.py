"""`nn.MultiheadAttention` and torch's layers of transformers: which widths shrink, how exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Net, counted_macs, relative, scramble, spelled_out
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import branchprune as bp
from branchprune.graph.draws import DrawsAlike
from branchprune.graph.fast_path import without_fast_path
from branchprune.graph.twin_layers import narrow_layer

IMAGE = (2, 3, 4, 4)
CAUSAL = torch.ones(16, 16, dtype=torch.bool).triu(1)
PADDED = torch.arange(16).expand(2, -1) > torch.tensor([[15], [9]])


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(12, 2, batch_first=True, **options)


def itself(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.att(*[tokens(m.a(x))] * 3)[0])


def of_both(m: Any, x: Tensor) -> Tensor:
    y, z = tokens(m.a(x)), tokens(m.b(x))
    return m.fc(m.att(key=z, value=z, query=y, key_padding_mask=PADDED, need_weights=False)[0])


def first_dimension(m: Any, x: Tensor) -> Tensor:
    y = tokens(m.a(x)).transpose(0, 1)
    made, _ = m.att(y, y, y, attn_mask=CAUSAL)
    return m.fc(made)


def learned(m: Any, x: Tensor) -> Tensor:
    y = tokens(m.a(x))
    return m.fc(m.att(m.query.repeat(len(x), 1, 1), y, y)[0])


def encoded(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.enc(tokens(m.a(x)), mask=CAUSAL, src_key_padding_mask=PADDED))


def decoded(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.dec(tokens(m.a(x)), m.enc(tokens(m.b(x))), tgt_mask=CAUSAL))


def net(run: Callable[..., Any], **layers: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made = Net(run, a=conv(3, 12), b=conv(3, 12), fc=nn.Linear(12, 3))
        for name, layer in ({"att": attention} | layers).items():
            setattr(made, name, layer())
        return made

    return make


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(12, 2, 10, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder() -> nn.TransformerDecoder:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 2, 10, batch_first=True), 1)


class Derived(nn.MultiheadAttention):
    """A user's class that leaves forward as it is."""


CASES = {
    "self-attention": net(itself),
    "no bias": net(itself, att=lambda: attention(bias=False)),
    "a key more": net(itself, att=lambda: attention(add_bias_kv=True, add_zero_attn=True)),
    "key and value of their own": net(of_both),
    "key and value of other widths": net(
        of_both, b=lambda: conv(3, 8), att=lambda: attention(kdim=8, vdim=8)
    ),
    "positions first": net(first_dimension, att=lambda: nn.MultiheadAttention(12, 3)),
    "a learned query": net(learned, query=lambda: nn.Parameter(torch.randn(1, 1, 12))),
    "of two layers": net(
        lambda m, x: m.fc(m.att(*[tokens(torch.cat([m.a(x), m.b(x)], 1))] * 3)[0]),
        **{"a": lambda: conv(3, 4), "b": lambda: conv(3, 8)},
    ),
    "called twice": net(lambda m, x: m.fc(m.att(*[m.att(*[tokens(m.a(x))] * 3)[0]] * 3)[0])),
    "a user's class": net(itself, att=lambda: Derived(12, 2, batch_first=True)),
    "encoder": net(encoded, enc=encoder),
    "encoder with norms first": net(encoded, enc=lambda: encoder(norm_first=True, bias=False)),
    "decoder": net(decoded, enc=encoder, dec=decoder),
}


def shrunk(plan: bp.Plan) -> dict[str, tuple[int, int]]:
    return {group.name: (group.width, group.kept) for group in plan.groups if group.pruned}


@pytest.mark.parametrize("name", CASES)
@without_fast_path()
def test_branch_and_collapse(name: str) -> None:
    """α = 1 is the model, α = 0 is layers between matrices, and both count as planned."""
    torch.manual_seed(0)
    model = scramble(CASES[name]().double().eval())
    x = torch.randn(IMAGE, dtype=torch.float64)
    plan = bp.plan(model, x)
    assert {*shrunk(plan)} >= {"a"}, {group.name: group.reason for group in plan.groups}
    blended = bp.attach(model, plan)
    for training in (False, True):
        with DrawsAlike():
            assert torch.equal(blended.train(training)(x), model.train(training)(x))
    scramble(blended, seed=2)
    blended.alpha = 0.0
    small = bp.collapse(blended).eval()
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert plan.after.macs < 0.6 * plan.before.macs
    for net, cost in ((model.eval(), plan.before), (small, plan.after)):
        assert 2 * cost.macs == counted_macs(net, x)
    with torch.no_grad():
        expected, before = spelled_out(blended.eval())(x), model(x)
        assert relative(expected, small(x)) < 1e-10 > relative(expected, blended(x))
        assert relative(expected, before) > 1e-3


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 7}, {"add_bias_kv": True}])
def test_a_narrow_attention_is_a_selection(options: dict[str, Any]) -> None:
    """Where nothing reads what is dropped, what is kept is computed as before."""
    torch.manual_seed(0)
    wide = nn.MultiheadAttention(12, 2, batch_first=True, **options).double()
    scramble(wide, seed=1)
    inputs = outputs = torch.tensor([0, 2, 3, 7, 8, 11])
    inside = torch.tensor([1, 4, 5, 6, 8, 11])
    dropped = [i for i in range(12) if i not in inside]
    query, key, value = (
        wide.in_proj_weight.data.chunk(3)
        if wide.in_proj_weight is not None
        else (wide.q_proj_weight.data, wide.k_proj_weight.data, wide.v_proj_weight.data)
    )
    widths = [12, wide.kdim, wide.vdim]
    for weight in (query, key, value):
        weight[dropped] = 0
        if weight.shape[1] == 12:
            weight[:, [i for i in range(12) if i not in inputs]] = 0
    wide.in_proj_bias.data.view(3, 12)[:, dropped] = 0
    if wide.bias_k is not None:
        wide.bias_k.data[..., dropped] = wide.bias_v.data[..., dropped] = 0
    given = [torch.randn(2, 5, width, dtype=torch.float64) for width in widths]
    narrow = narrow_layer(wide, inputs, outputs)
    assert narrow.head_dim == 3
    small = [x[..., inputs] if x.shape[-1] == 12 else x for x in given]
    expected = wide(*given)[0][..., outputs]
    assert relative(expected, narrow(*small)[0]) < 1e-12


def test_exact_after_steps_of_an_optimizer() -> None:
    torch.manual_seed(0)
    model = CASES["encoder"]().double()
    x, wanted = torch.randn(IMAGE, dtype=torch.float64), torch.randn(2, 16, 3)
    blended = bp.attach(model, bp.plan(model, x), mixing="group").train()
    optimizer = torch.optim.Adam(blended.parameters(), 1e-2)
    for alpha in (0.7, 0.4, 0.1, 0.0):
        blended.alpha = alpha
        optimizer.zero_grad()
        F.mse_loss(blended(x), wanted.double()).backward()
        optimizer.step()
    small = bp.collapse(blended).eval()
    y = torch.randn(IMAGE, dtype=torch.float64)
    with torch.no_grad(), without_fast_path():
        assert relative(spelled_out(blended.eval())(y), small(y)) < 1e-10


def test_the_number_that_a_transformer_keeps_follows(tmp_path: Any) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        whole = nn.Transformer(12, 2, 1, 1, 10, batch_first=True)
        run = lambda m, x: m.fc(m.whole(tokens(m.b(x)), tokens(m.a(x)), tgt_mask=CAUSAL))  # noqa: E731
        return Net(run, a=conv(3, 12), b=conv(3, 12), fc=nn.Linear(12, 3), whole=whole).eval()

    x = torch.randn(IMAGE)
    blended = scramble(bp.attach(make(), bp.plan(make(), x)), seed=2)
    blended.alpha = 0.0
    small = bp.collapse(blended)
    assert small.whole.d_model == small.whole.decoder.layers[0].multihead_attn.embed_dim == 6
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(make(), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))
    attention = loaded.whole.encoder.layers[0].self_attn
    assert (attention.embed_dim, attention.head_dim, attention.kdim) == (6, 3, 6)
    assert shrunk(bp.plan(loaded, x))["b"] == (6, 4)


def hooked(att: nn.MultiheadAttention) -> None:
    att.out_proj.register_forward_hook(lambda *_: None)


def parametrised(att: nn.MultiheadAttention) -> None:
    parametrizations.weight_norm(att.out_proj)


def scores_too(m: Any, x: Tensor) -> Tensor:
    made, scores = m.att(*[tokens(m.a(x))] * 3)
    return m.fc(made) * scores.sum(-1, keepdim=True)


def layer_again(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.att.out_proj(m.att(*[tokens(m.a(x))] * 3)[0]))


STAYS = {
    "forward reads the scores of 1.att (MultiheadAttention)": (scores_too, None),
    "forward calls 1.att.out_proj by itself and in 1.att": (layer_again, None),
    "1.att.out_proj has forward hooks": (itself, hooked),
    "1.att.out_proj is parametrised": (itself, parametrised),
    "1.att reads the output of `softmax`": (
        lambda m, x: m.fc(m.att(tokens(m.a(x)), *[tokens(m.b(x)).softmax(-1)] * 2)[0]),
        None,
    ),
}


@pytest.mark.parametrize("reason", STAYS)
def test_what_stays(reason: str) -> None:
    run, change = STAYS[reason]
    model = nn.Sequential(conv(3, 3), net(run)(), nn.Linear(3, 6), nn.Linear(6, 2))
    if change is not None:
        change(model[1].att)
    plan = bp.plan(model, torch.randn(IMAGE))
    reasons = {group.name: str(group.reason) for group in plan.groups}
    assert reason in reasons["1.a"]
    blended = scramble(bp.attach(model, plan), seed=1)
    blended.alpha = 0.0
    bp.collapse(blended)


def test_positions_that_are_read_as_channels_stay() -> None:
    run = lambda m, x: m.att(*[m.b(m.a(x)).flatten(2)] * 3)[0]  # noqa: E731
    model = Net(run, a=conv(3, 6), b=conv(6, 4), att=nn.MultiheadAttention(16, 2))
    plan = bp.plan(model, torch.randn(IMAGE))
    assert shrunk(plan) == {"a": (6, 3)}
    assert "it acts on another dimension than the channels" in str(plan.groups[1].reason)


def test_what_is_said_to_write_in_place_of_scores_helps() -> None:
    def by_hand(m: Any, x: Tensor) -> Tensor:
        y = tokens(m.a(x))
        scores = (m.q(y) @ m.k(y).mT).softmax(-1)
        return m.fc(scores @ m.v(y)) * scores.sum(-1, keepdim=True)

    x = torch.randn(IMAGE)
    model = nn.Sequential(conv(3, 6), conv(6, 3), net(scores_too)())
    remedies = {each.remedy for each in bp.plan(model, x).staying}
    assert "compute attention with fully connected layers, `@` and softmax" in remedies
    layers = {name: lambda: nn.Linear(12, 12) for name in "qkv"}
    assert {*shrunk(bp.plan(net(by_hand, **layers)(), x))} == {"a", "q", "v"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_positions_that_are_padded() -> None:
    """In evaluation torch's encoder puts zeros there, the blended model as little as training."""
    torch.manual_seed(0)
    model = CASES["encoder"]().eval()
    model.enc = nn.TransformerEncoder(model.enc.layers[0], 1)
    model.run = lambda m, x: m.fc(m.enc(tokens(m.a(x)), src_key_padding_mask=PADDED))
    x = torch.randn(IMAGE)
    blended = scramble(bp.attach(model, bp.plan(model, x)), seed=2)
    blended.alpha = 0.0
    small = bp.collapse(blended)
    with torch.no_grad():
        found, expected = small(x)[~PADDED], blended(x)[~PADDED]
    assert relative(expected, found) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()

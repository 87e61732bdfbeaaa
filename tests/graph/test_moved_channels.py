"""Where the channels are behind operations that move, merge or drop dimensions, in any order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from models import relative, scramble, spelled_out
from random_layers import of
from random_networks import Case, planned
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.build import analyse
from branchprune.graph.structure import ChannelTensor


class Chain(nn.Module):
    """A convolution and then some operations that move, merge or drop dimensions."""

    def __init__(self, operations: list[str]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.operations = operations

    def moved(self, x: Tensor) -> Tensor:
        for operation in self.operations:
            x = eval(operation, {"torch": torch, "F": F, "x": x})
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.moved(self.conv(x))


KNOWN = """
    x.permute(0, 2, 3, 1) | x.permute(3, 0, 1, 2) | torch.permute(x, (1, 0, 2, 3)) |
    x.transpose(1, 2) | x.transpose(-1, 1) | torch.transpose(x, 0, -2) | x.flatten(1) |
    x.flatten(2) | torch.flatten(x, 1, 2) | x.flatten(-2) | x.reshape(x.size(0), -1) |
    x.view(x.shape[0], x.shape[1], -1) | torch.reshape(x, (x.size(0), x.size(1), -1)) |
    x.unsqueeze(1) | x.unsqueeze(-1) | x.unsqueeze(0) | torch.unsqueeze(x, 2) | x.squeeze() |
    x.squeeze(1) | torch.squeeze(x, -1) | x.mean(2) | x.mean((2, 3)) | x.mean(-1, keepdim=True) |
    torch.mean(x, 0) | x.amax((0, 2)) | torch.sum(x[:1], 0) | x[0] | x[..., 0] | x[:, :, 1:] |
    x[None] | x[:, None] | x[..., None, :] | x[:, :, 0, None] | x[..., ::2] | x[:1, ..., 0] |
    F.pad(x, (1, 1, 0, 0), mode='replicate') | x.contiguous().clone() | F.avg_pool2d(x, 2) |
    F.max_pool1d(x.flatten(2), 2) | torch.cat([x, x], 0) | torch.cat([x, x], -1) |
    x.view(x.size(0), -1, 1) | torch.maximum(x, x[:, :1]) | x * 1 | x.expand_as(x) |
    x.swapaxes(1, -1) | torch.swapdims(x, 0, 1) | x.flip(2) | torch.flip(x, (0, -1)) |
    x.repeat(1, 1, 2, 1) | x.repeat(2, 1, 1, 1, 1) | torch.where(x >= 0, x, -x) |
    x[:, -1:] | x[:, 1:4] | x.narrow(1, 2, 3) | x.split([2, 4], 1)[1] |
    x.tensor_split(2, 2)[1] | torch.tensor_split(x, [1, 2], dim=2)[0]
"""
"""Calls behind which the channels of (N, C, H, W) must be found."""
REFUSED = """
    x.flatten(0, 1) | x.reshape(-1, x.size(-1)) | x.mean(1) | x[:, 0] | x.flip(1) |
    x.repeat(1, 2, 1, 1) | x[:, ::2] | x.tensor_split([2], 1)[1] | x.tensor_split(4, 1)[0]
"""
"""Calls that mix the channels of (N, C, H, W), or pick some of them."""
OF_THREE = "torch.permute(x, (1, 0, 2)) | F.pad(x, (1, 1), mode='replicate')"
"""Calls that take three dimensions, which only others leave."""


def calls(listed: str) -> list[str]:
    return [call.strip() for call in listed.split("|")]


MOVES = st.sampled_from([*calls(KNOWN), *calls(REFUSED), *calls(OF_THREE)])


def layout_behind(chain: Chain, x: Tensor) -> ChannelTensor | None:
    """Return where the channels of the chain's output are, if that is known."""
    structure = analyse(chain, x)
    return structure.tensors[False].get(list(structure.graphs[False].nodes)[-2].name)


@pytest.mark.parametrize("call", calls(KNOWN))
def test_channels_are_found_behind(call: str) -> None:
    layout = layout_behind(Chain([call]), torch.randn(2, 3, 4, 2))
    assert layout is not None, "no rule: is it in the tables of graph/rules/registry.py?"


@pytest.mark.parametrize("call", calls(REFUSED))
def test_channels_are_given_up_behind(call: str) -> None:
    assert layout_behind(Chain([call]), torch.randn(2, 3, 4, 2)) is None


@settings(max_examples=150)
@given(st.lists(MOVES, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_where_the_channels_are(operations: list[str], batch: int) -> None:
    """Every value of a tensor says its channel: the layout must find them where they are."""
    chain = Chain(operations)
    marked = torch.arange(6.0)[None, :, None, None].expand(batch, 6, 4, 2).contiguous()
    try:
        with torch.no_grad():
            found = chain.moved(marked)
    except (RuntimeError, IndexError):
        reject()
    if found.numel() == 0 or found.isnan().any():
        reject()
    example = torch.randn(batch, 3, 4, 2)
    layout = layout_behind(chain, example)
    if layout is None:
        event("not known")
        return
    event(f"known after {len(operations)}")
    made = analyse(chain, example).linears["conv"].outputs
    parts = torch.arange(6.0).split([piece.width for piece in made])
    labels = {piece.group: part for piece, part in zip(made, parts, strict=True)}
    expected = torch.cat([labels[p.group].repeat_interleave(p.repeat) for p in layout.pieces])
    assert found.shape[layout.dim] == len(expected)
    last_dim = found.movedim(layout.dim, -1)
    assert torch.equal(last_dim, expected.expand_as(last_dim))


@settings(max_examples=60)
@given(st.lists(MOVES, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_collapse_behind_moved_channels(operations: list[str], batch: int) -> None:
    chain = Chain(operations).double().eval()
    x = torch.randn(batch, 3, 4, 2, dtype=torch.float64)
    try:
        shape = chain(x).shape
    except (RuntimeError, IndexError):
        reject()
    layout = layout_behind(chain, x)
    if layout is None or 0 in shape:
        reject()
    if layout.dim == len(shape) - 1:
        consumer: nn.Module = nn.Linear(shape[-1], 5)
    elif layout.dim == 1 and len(shape) in (3, 4):
        consumer = of("Conv", len(shape) - 2)(shape[1], 5, 1)
    else:
        reject()
    model = nn.Sequential(chain, consumer.double())
    if all(group.reason for group in analyse(model, x).groups):
        reject()
    plan = planned(Case(model, x, 0.5))
    kept = [plan.groups[p.group].kept for p in plan.structure.linears["0.conv"].outputs]
    assert sum(kept) == 3 or len(kept) > 1
    blended = scramble(bp.attach(model, plan))
    assert isinstance(blended, bp.Blended)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small[0].conv.weight.shape == (sum(kept), 3, 1, 1)
    assert relative(spelled_out(blended)(x), small(x)) < 1e-10
    assert relative(spelled_out(blended)(x), blended(x)) < 1e-10

"""What is tried out on random numbers: operations that only seem to treat channels alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from branchprune.graph.rules.probe import NotFollowed, Operand, Place, probe

IMAGE = Operand((2, 8, 3, 5), dim=1)


def tried(function: Callable[..., Any], *operands: Operand) -> tuple[Place, ...]:
    return probe(lambda tensors, _: function(*tensors), operands or (IMAGE,)).places


def above(limit: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flip(1) if float(x.abs().max()) > limit else x


ODD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "mixes large numbers": (above(1e6), "it mixes the channels"),
    "mixes negative numbers": (lambda x: x.cumsum(1) if bool((x < 0).any()) else x, "it mixes"),
    "mixes small numbers": (
        lambda x: x.roll(1, 1) if bool((x.abs() < 1e-6).any()) else x,
        "it mixes",
    ),
    "mixes equal numbers": (lambda x: x.flip(1) if x.unique().numel() < 9 else x, "it mixes"),
    "mixes positive numbers": (lambda x: x.flip(1) if bool((x > 0).all()) else x, "it mixes"),
    "rolls by a multiple of a width": (lambda x: x.roll(5 * 7 * 4, 1), "it mixes"),
    "reorders": (lambda x: x.sort(1)[0], "it mixes"),
    "is equivariant": (lambda x: x - x.mean(1, keepdim=True), "it mixes"),
    "depends on how many there are": (lambda x: x / x.shape[1], "it mixes"),
    "reduces": (lambda x: x.amax(1), "it mixes all channels, or picks some"),
    "picks": (lambda x: x[:, :2], "it mixes all channels, or picks some"),
    "picks half": (lambda x: x[:, : x.shape[1] // 2], "it mixes the channels with another"),
    "merges the batch": (lambda x: x.flatten(0, 1), "it mixes"),
    "needs a width": (lambda x: x.view(2, 8, 15), "it fails at other widths"),
    "needs an even width": (lambda x: x.unflatten(1, (2, -1)), "it"),
    "draws": (torch.rand_like, "it draws at random"),
    "returns a number": (lambda x: (x, 3), "it returns something else than tensors"),
    "returns one tensor a channel": (lambda x: x.unbind(1), "how many tensors it returns"),
    "drops a dimension": (lambda x: x if x.shape[1] > 3 else x[0], "how many dimensions"),
    "mixes in its second output": (lambda x: (x, x.cumsum(1)), "it mixes the channels"),
    "outer product": (lambda x: x[:, :, None] * x[:, None], "it mixes the channels with another"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_only_seems_to_treat_channels_alike(case: str) -> None:
    function, reason = ODD[case]
    with pytest.raises(NotFollowed, match=reason):
        tried(function)


def test_where_the_channels_are() -> None:
    assert tried(torch.sin) == (Place(1, 1, False, True),)
    assert tried(lambda x: x.mean((2, 3))) == (Place(1, 1, False, False),)
    assert tried(lambda x: x.movedim(1, -1)) == (Place(3, 1, False, False),)
    assert tried(lambda x: x.repeat_interleave(3, 1)) == (Place(1, 3, False, False),)
    assert tried(lambda x: torch.cat([x, -x], 1)) == (Place(1, 2, True, False),)
    assert tried(lambda x: x.max(2)) == (Place(1, 1, False, False),) * 2
    assert tried(lambda x: x.sub_(x.amin((2, 3), keepdim=True)))[0].dim == 1


def test_entries_of_one_channel_may_be_mixed() -> None:
    runs = Operand((2, 32), dim=1, run=4)
    mix = lambda x: x.unflatten(1, (-1, 4)).softmax(2).flatten(1)  # noqa: E731
    assert tried(mix, runs) == (Place(1, 4, False, True),)
    with pytest.raises(NotFollowed):
        tried(mix, Operand((2, 32), dim=1))


def test_several_operands() -> None:
    weight, fixed = Operand((8,), dim=0), Operand((5, 4))
    assert tried(lambda x, w: x * w[:, None, None], IMAGE, weight)[0].dim == 1
    assert tried(lambda x, w: x @ w, IMAGE, fixed)[0].dim == 1
    with pytest.raises(NotFollowed, match="other widths"):
        tried(lambda x, w: x * w[:, None, None], IMAGE, Operand((8,)))
    mask = Operand((2, 8, 3, 5), torch.bool, 1)
    index = Operand((2, 8, 1, 5), torch.int64, 1)
    assert tried(lambda x, m: x.masked_fill(m, 0), IMAGE, mask)[0].dim == 1
    assert tried(lambda x, i: x.gather(2, i), IMAGE, index)[0].dim == 1
    with pytest.raises(NotFollowed):
        tried(lambda x, i: x.gather(1, i), IMAGE, index)


def test_nothing_outside_is_changed() -> None:
    state = torch.get_rng_state()
    tried(torch.nn.functional.gelu)
    assert torch.equal(state, torch.get_rng_state())

"""Criteria by activations: cases computed by hand, through `attach`, and by loops."""

from __future__ import annotations

import math

import pytest
import torch
from models import Net, resnet, scramble
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.activations import apoz, entropy, hrank
from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.input_statistics import Reading, read

X = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def group_of(*examples: Tensor) -> GroupWeights:
    """A group of which layers have noted numbers of examples, shape (N, C)."""
    nothing = torch.zeros(examples[0].shape[1], examples[0].shape[1])
    readings = tuple(Reading(nothing, nothing, each.double()) for each in examples)
    return GroupWeights("g", examples[0].shape[1], (), (), readings=readings)


def chain() -> nn.Sequential:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    return nn.Sequential(*layers)


def chosen(model: nn.Module, init: object, layer: str = "0") -> list[int]:
    blended = bp.attach(model, bp.plan(model, X[:1]), init, batches=[X[:4], X[4:]])  # type: ignore[arg-type]
    return sorted(blended.reduce.get_submodule(layer).weights[0].argmax(1).tolist())


def best(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def test_what_is_noted_of_a_map() -> None:
    maps = torch.tensor(
        [[[1.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [2.0, 4.0]], [[0.0, 0.0], [-1.0, 0]]]
    )
    maps = maps[None, :, None]  # (N, C, T, H, W)
    assert apoz.statistic(maps).tolist() == [[0.5, 1.0, 0.0]]
    assert entropy.statistic(maps).tolist() == [[0.75, 2.25, -0.25]]
    assert hrank.statistic(maps).tolist() == [[2.0, 1.0, 1.0]]
    assert hrank.statistic(maps.flatten(3)).tolist() == [[1.0, 1.0, 1.0]]  # a row each


def test_several_readers_count_alike_and_none_that_reads_other_channels() -> None:
    first = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 0.5, torch.nan]])
    assert apoz(group_of(first, torch.tensor([[1.0, 0.25, 0.125]]))).tolist() == [0.75, 0.25, 0.125]


def test_entropy_by_hand() -> None:
    """Means in four of the hundred bins, in two, and all alike."""
    means = torch.tensor([[0.0, 5.0, 7.0], [1.0, 5.0, 7.0], [0.5, -5.0, 7.0], [0.25, -5.0, 7.0]])
    expected = [math.log(4), math.log(2), 0.0]
    assert entropy(group_of(means)).tolist() == pytest.approx(expected)
    assert torch.equal(entropy(group_of(means)), entropy(group_of(3 * means + 1)))


@pytest.mark.parametrize("name", ["apoz", "entropy", "hrank"])
def test_channels_are_chosen_by_what_the_next_layer_reads(name: str) -> None:
    model = scramble(chain()).eval()
    with torch.no_grad():
        maps = model[:3](X)
    scores = []
    for c in range(8):
        here = maps[:, c]
        if name == "apoz":
            scores.append(sum(float(v > 0) for v in here.flatten()) / here.numel())
        elif name == "hrank":
            scores.append(sum(int(torch.linalg.matrix_rank(m)) for m in here) / len(here))
        else:
            means = here.mean((1, 2))
            shares = torch.histc(means, 100) / len(means)
            scores.append(-sum(float(p) * math.log(p) for p in shares if p > 0))
    cut, kept = sorted(scores)[3:5]
    assert cut < kept, "no tie at the border"
    assert chosen(model, name) == best(scores, 4)


def test_a_flattened_map_is_read_entry_by_entry() -> None:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)
    model = scramble(nn.Sequential(*layers)).eval()
    plan = bp.plan(model, X[:1])
    found = read(model, plan.structure, plan.pruned, model, [X], apoz.statistic)
    with torch.no_grad():
        expected = (model[:2](X) > 0).double().mean((2, 3))
    examples = found[plan.pruned[0]][0].examples
    assert examples is not None and torch.allclose(examples, expected)


def test_a_stream_is_read_by_all_its_readers_of_two_batches() -> None:
    model = scramble(resnet()).eval()
    plan = bp.plan(model, X[:1])
    found = read(model, plan.structure, plan.pruned, model, [X[:4], X[4:]], apoz.statistic)
    for readings in found.values():
        for reading in readings:
            assert reading.examples is not None and len(reading.examples) == len(X)


def test_tokens_are_positions() -> None:
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 2)}
    model = scramble(Net(lambda m, x: m.b(m.a(x).relu()), **layers)).eval()
    tokens = torch.randn(4, 7, 5)
    plan = bp.plan(model, tokens[:1])
    found = read(model, plan.structure, plan.pruned, model, [tokens], apoz.statistic)
    expected = (model.a(tokens) > 0).double().mean(1)  # type: ignore[operator]
    examples = found[plan.pruned[0]][0].examples
    assert examples is not None and torch.allclose(examples, expected)


@pytest.mark.parametrize("name", ["apoz", "entropy", "hrank"])
def test_without_batches_the_way_out_is_named(name: str) -> None:
    model = chain().eval()
    with pytest.raises(bp.PruneError, match=f"init '{name}' needs batches that reach what reads 0"):
        bp.attach(model, bp.plan(model, X[:1]), name)


@pytest.mark.parametrize("name", ["apoz", "hrank"])
def test_a_target_is_met_with_them(name: str) -> None:
    model = scramble(chain()).eval()
    plan = bp.plan(model, X[:1], target={"macs": 0.6}, batches=[X], criterion=name)
    assert plan.after.macs <= 0.6 * plan.before.macs


def test_of_one_example_no_channel_tells_another() -> None:
    model = scramble(chain()).eval()
    with pytest.raises(bp.PruneError, match="'entropy' tells examples apart, and batches have one"):
        bp.attach(model, bp.plan(model, X[:1]), "entropy", batches=[X[:1]])


@pytest.mark.parametrize("name", ["apoz", "entropy", "hrank"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_read_must_be_numbers(name: str, broken: float) -> None:
    model = chain().eval()
    plan = bp.plan(model, X[:1])
    with torch.no_grad():
        model[0].weight[2, 0, 0, 0] = broken  # type: ignore[index]
    with pytest.raises(bp.PruneError, match="batches: 3 reads numbers that are not finite"):
        bp.attach(model, plan, name, batches=[X])

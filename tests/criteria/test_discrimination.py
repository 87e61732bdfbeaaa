"""The criterion of discrimination, against classifiers that are fitted to every choice."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from models import Net, scramble
from torch import Tensor, nn

import branchprune as bp

GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(60, 3, 6, 6, generator=GENERATOR, dtype=torch.double)
Y = torch.randint(3, (60,), generator=GENERATOR)


def chain() -> nn.Sequential:
    layers = nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3)
    return scramble(nn.Sequential(*layers).double()).eval()


def unexplained(means: Tensor, wanted: Tensor) -> float:
    """Return what is left of centred numbers that others are to make of them, least squares."""
    found = torch.linalg.lstsq(means, wanted).solution
    return float((wanted - means @ found).square().sum())


def read_means(model: nn.Sequential) -> Tensor:
    """Return the means over each map that the last layer reads, centred, shape (N, C)."""
    with torch.no_grad():
        means: Tensor = model[:2](X).mean((2, 3))
    return means - means.mean(0)


def kept_of(model: nn.Module, init: object, batches: list[Tensor]) -> list[int]:
    plan = bp.plan(model, X[:1], keep=1 / 6)
    blended = bp.attach(model, plan, init, batches=batches)  # type: ignore[arg-type]
    return blended.reduce.get_submodule("0").weights[0].argmax(1).tolist()


def test_the_first_pick_tells_most_of_the_classes() -> None:
    """Without batches of `attach`, classes alone count: one channel against every other."""
    model = chain()
    means = read_means(model)
    wanted = torch.nn.functional.one_hot(Y).double()
    wanted -= wanted.mean(0)
    left = [
        unexplained(means[:, [c]], means @ torch.linalg.lstsq(means, wanted).solution)
        for c in range(6)
    ]
    plan = bp.plan(model, X[:1], keep=1 / 6)
    init = bp.discrimination(model, plan, [(X[:25], Y[:25]), (X[25:], Y[25:])])
    assert kept_of(model, init, []) == [left.index(min(left))]


def test_it_is_of_the_model_that_it_was_made_of() -> None:
    model = chain()
    plan = bp.plan(model, X[:1], keep=1 / 2)
    init = bp.discrimination(model, plan, [(X, Y)])
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    small = bp.collapse(blended)
    again = bp.plan(small, X[:1], keep=1 / 3)
    for batches in ([], [X]):
        with pytest.raises(
            bp.PruneError, match="another model: 0 has 3 channels here, and 6 there"
        ):
            bp.attach(small, again, init, batches=batches)


def test_a_channel_that_tells_the_class_stays_though_it_is_hardly_read() -> None:
    """What the layer makes of it is next to nothing, so that reconstruction leaves it out."""
    model = chain()
    x = X.clone()
    x[:, 0] += 3 * (Y[:, None, None] - 1.0)
    with torch.no_grad():
        model[0].weight[4] = 0
        model[0].weight[4, 0] = 0.1
        model[0].weight[[0, 1, 2, 3, 5], 0] = 0  # no other sees the class
        model[2].weight[:, 4] *= 1e-3  # type: ignore[operator]
    plan = bp.plan(model, x[:1], keep=1 / 2)
    found = []
    for init in ("reconstruction", bp.discrimination(model, plan, [(x, Y)])):
        blended = bp.attach(model, plan, init, batches=[x])
        found.append(4 in blended.reduce.get_submodule("0").weights[0].argmax(1).tolist())
    assert found == [False, True]


def test_windows_of_an_image_have_its_class() -> None:
    """A layer that reads four parts of each image reads the mean of what they tell."""

    def run(net: nn.Module, x: Tensor) -> Tensor:
        u = net.a(x)  # type: ignore[operator]
        parts = u.unflatten(2, (2, -1)).movedim(2, 1).flatten(0, 1)
        found: Tensor = net.b(parts)  # type: ignore[operator]
        return found.unflatten(0, (len(x), -1)).sum(1)

    layers = {"a": nn.Conv2d(3, 6, 3, padding=1), "b": nn.Conv2d(6, 4, 1)}
    model = scramble(Net(run, **layers).double()).eval()
    plan = bp.plan(model, X[:1])
    whole = Net(lambda m, x: m.b(m.a(x)), a=model.a, b=model.b)  # type: ignore[arg-type]
    found = [
        bp.discrimination(each, bp.plan(each, X[:1]), [(X, Y)]).readings["a"][0].weights
        for each in (model, whole)
    ]
    assert plan.pruned and torch.allclose(*found)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches must be some pairs of an input and its classes: there are none"),
        ([X], r"batches\[0\] must be a pair of an input and the classes"),
        ([(X, Y.double())], r"batches\[0\] must be a pair of an input and the classes"),
        ([(X, Y[:, None])], r"batches\[0\] must be a pair of an input and the classes"),
        ([(X, 0 * Y + 2)], "batches are all of class 2: nothing tells classes apart"),
        ([(X, Y[:7])], r"batches\[0\] has 7 classes, and an input of 60 examples"),
        ([(X, Y), (X, Y[:30])], r"batches\[1\] has 30 classes, and an input of 60 examples"),
    ],
)
def test_what_is_wrong_with_batches_is_told(batches: object, message: str) -> None:
    model = chain()
    with pytest.raises(bp.PruneError, match=message):
        bp.discrimination(model, bp.plan(model, X[:1]), batches)  # type: ignore[arg-type]


def test_every_pair_is_worse_than_what_is_picked_or_as_good_as_greedy() -> None:
    """Two picks explain at least (1 − 1/e) of what the best pair does."""
    model = chain()
    means = read_means(model)
    wanted = torch.nn.functional.one_hot(Y).double()
    target = means @ torch.linalg.lstsq(means, wanted - wanted.mean(0)).solution
    plan = bp.plan(model, X[:1], keep=2 / 6)
    init = bp.discrimination(model, plan, [(X, Y)])
    picked = bp.attach(model, plan, init).reduce.get_submodule("0").weights[0].argmax(1).tolist()
    every = {pair: unexplained(means[:, [*pair]], target) for pair in combinations(range(6), 2)}
    size = float(target.square().sum())
    best = size - min(every.values())
    assert size - every[tuple(sorted(picked))] >= 0.63 * best  # type: ignore[index]

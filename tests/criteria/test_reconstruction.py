"""The criterion "reconstruction" and what it sees, against least squares that is spelled out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from models import relative, scramble
from observed_runs import command
from small_training import TinyVGG
from torch import Tensor, nn

import branchprune as bp
from branchprune.cli import main
from branchprune.criteria.column_selection import reconstruction
from branchprune.criteria.group_weights import GroupWeights
from branchprune.criteria.input_statistics import Reading, read

pytestmark = pytest.mark.usefixtures("without_charts")

GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(6, 3, 8, 8, generator=GENERATOR, dtype=torch.float64)


class Shuffled(nn.Module):
    """Channels whose order is changed before they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        u: Tensor = self.act(self.a(x))
        n, c, h, w = u.shape
        u = u.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y: Tensor = self.b(u)
        return y


def attached(model: nn.Module, **options: object) -> bp.Blended:
    model = scramble(model.double()).eval()
    return bp.attach(model, bp.plan(model, X[:1]), **options)  # type: ignore[arg-type]


def samples(u: Tensor) -> Tensor:
    """Return channels (M, C), without their means."""
    flat = u.movedim(1, -1).flatten(0, -2)
    return flat - flat.mean(0)


def read_all(blended: bp.Blended, batches: Sequence[Tensor]) -> dict[int, list[Reading]]:
    plan = blended.plan
    return read(blended.model, plan.structure, plan.pruned, blended, batches)


def reading_of(blended: bp.Blended) -> Reading:
    [[reading]] = [found for found in read_all(blended, X.split(2)).values()]
    return reading


def test_the_channels_are_known_behind_a_shuffle() -> None:
    """The halves of the channels share a width, so that each channel has one of either."""
    blended = attached(Shuffled())
    found = reading_of(blended)
    with torch.no_grad():
        u = samples(torch.cat(blended.model.a(X).tanh().split(4, 1)))
    assert relative(u.T @ u / len(u), found.covariance) < 1e-12
    w = blended.model.b.weight.detach().flatten(1)  # reads 0, 4, 1, 5, 2, 6, 3, 7
    first, second = w[:, [0, 2, 4, 6]], w[:, [1, 3, 5, 7]]
    assert relative(first.T @ first + second.T @ second, found.weights) < 1e-12


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(8, 4, 3, padding=1),
        nn.Conv2d(8, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 3),
        nn.ConvTranspose2d(8, 4, 2, groups=4),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 5)),
    ],
)
def test_the_weights_are_what_changes_the_readers_outputs(reader: nn.Module) -> None:
    """A change at one position; of a fully connected layer, the same summed over all of them."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), reader)
    blended = attached(model)
    found = reading_of(blended)
    layers = blended.model[2:]
    change = torch.randn(8, generator=GENERATOR, dtype=torch.float64)
    places = (
        [(i, j) for i in range(8) for j in range(8)]
        if isinstance(reader, nn.Sequential)
        else [(4, 4)]
    )
    size = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for i, j in places:
            u = torch.zeros(1, 8, 8, 8, dtype=torch.float64)
            u[0, :, i, j] = change
            size += (layers(u) - layers(torch.zeros_like(u))).square().sum()
    assert float(change @ found.weights @ change) == pytest.approx(float(size), rel=1e-10)


def test_both_readers_of_a_stream_are_heard() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.b(x.relu())
            y: Tensor = self.c(x)
            return y

    blended = attached(Stream())
    [found] = read_all(blended, [X]).values()
    assert len(found) == 2
    with torch.no_grad():
        first = blended.model.a(X)
        second = samples(first + blended.model.b(first.relu()))
        first = samples(first.relu())
    for u, reading in zip((first, second), found, strict=True):
        assert relative(u.T @ u / len(u), reading.covariance) < 1e-12


def test_a_reader_of_two_groups_is_read_for_each_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c(torch.cat([self.b(x).tanh(), self.a(x).relu()], 1))
            return y

    blended = attached(Both())
    names = [blended.plan.groups[i].name for i in blended.plan.pruned]
    found = dict(zip(names, read_all(blended, X.split(2)).values(), strict=True))
    weight = blended.model.c.weight.detach().flatten(1)
    with torch.no_grad():
        a, b = samples(blended.model.a(X).relu()), samples(blended.model.b(X).tanh())
    for name, u, w in (("a", a, weight[:, 6:]), ("b", b, weight[:, :6])):
        [reading] = found[name]
        assert relative(u.T @ u / len(u), reading.covariance) < 1e-12
        assert relative(w.T @ w, reading.weights) < 1e-12


def test_as_many_channels_are_scored_as_are_kept_even_if_they_tell_nothing() -> None:
    reading = Reading(torch.diag(torch.tensor([4.0, 1, 0, 0]).double()), torch.eye(4).double())
    scores = reconstruction(GroupWeights("g", 4, (), (), readings=(reading,), kept=3))
    assert scores.tolist() == [4, 3, 2, 0]


def unexplained(u: Tensor, kept: list[int], weight: Tensor) -> float:
    """Return what is left of a reader's outputs (weight (O, C)) by least squares on samples."""
    rest = u
    if kept:
        rest = u - u[:, kept] @ torch.linalg.lstsq(u[:, kept], u).solution
    return float((rest @ weight.T).square().sum() / (u @ weight.T).square().sum())


def test_every_pick_leaves_the_least_to_the_others() -> None:
    mix = torch.randn(5, 9, generator=GENERATOR, dtype=torch.float64)
    noise = torch.randn(400, 9, generator=GENERATOR, dtype=torch.float64)
    us = [
        torch.randn(400, 5, generator=GENERATOR, dtype=torch.float64) @ mix + 0.3 * noise,
        (torch.randn(400, 9, generator=GENERATOR, dtype=torch.float64) @ noise.T @ noise).relu(),
    ]
    us = [u - u.mean(0) for u in us]
    weights = [torch.randn(n, 9, generator=GENERATOR, dtype=torch.float64) for n in (4, 12)]
    readings = tuple(Reading(u.T @ u / len(u), w.T @ w) for u, w in zip(us, weights, strict=True))
    scores = reconstruction(GroupWeights("g", 9, (), (), readings=readings, kept=6))
    assert sorted(scores.tolist())[3:] == list(range(4, 10)) and scores.min() < 1
    picked: list[int] = []
    for index in scores.argsort(descending=True).tolist()[:7]:  # the next one, too
        left = {
            i: sum(unexplained(u, [*picked, i], w) for u, w in zip(us, weights, strict=True))
            for i in range(9)
            if i not in picked
        }
        assert left[index] <= min(left.values()) + 1e-9
        picked.append(index)


def test_copies_and_dead_channels_come_last() -> None:
    """A map can make a copy from its original, and nothing from nothing."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    with torch.no_grad():
        model[0].weight[3] = 100 * model[0].weight[0]
        model[0].bias[3] = 100 * model[0].bias[0]
        model[0].weight[5], model[0].bias[5] = 0, -1
    plan = bp.plan(model, X[:1], keep=4 / 6)
    blended = bp.attach(model, plan, init="reconstruction", batches=[X])
    chosen = blended.reduce.get_submodule("0").weights[0].argmax(1).tolist()
    assert chosen in ([0, 1, 2, 4], [1, 2, 3, 4])
    small = bp.collapse(at_zero(bp.fit_expand(blended, [X], ridge=0)))
    with torch.no_grad():
        assert relative(model(X), small(X)) < 1e-9  # nothing is lost
        by_norm = bp.fit_expand(bp.attach(model, plan), [X], ridge=0)
        assert relative(model(X), bp.collapse(at_zero(by_norm))(X)) > 1e-3


def at_zero(blended: bp.Blended) -> bp.Blended:
    blended.alpha = 0.0
    return blended


def test_nothing_is_left_behind() -> None:
    model = scramble(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    model[2].training = False
    before, x = copy.deepcopy(model.state_dict()), X.float()
    blended = bp.attach(
        model, bp.plan(model, x[:1]), init="reconstruction", batches=[x, (x,), {"input": x}][:2]
    )
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    for name in ("0", "1", "2"):
        assert blended.model.get_submodule(name).training == model.get_submodule(name).training
        assert not blended.model.get_submodule(name)._forward_pre_hooks


@pytest.mark.parametrize(
    ("batches", "message"), [((), "needs batches that reach what reads 0"), (X, r"\[batch\]")]
)
def test_without_batches_there_is_an_error(batches: object, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    with pytest.raises(bp.PruneError, match=message):
        bp.attach(model, bp.plan(model, X[:1]), init="reconstruction", batches=batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["cut", "blend"])
def test_a_run_starts_from_it(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(TinyVGG().state_dict(), tmp_path / "dense.pt")
    options = {"prune.criterion.name": "reconstruction", "prune.criterion.calibration": "2"}
    if algorithm == "cut":
        options |= {"prune.cut": "{}", "prune.finetune.epochs": "1"}
    else:
        options["prune.blend.levels"] = "[0.0]"
    task = {"task": "branchprune.lightning.ClassificationTask"}
    assert main(command(tmp_path, **task, **options)) == 0
    options["prune.criterion.calibration"] = "0"
    assert main(command(tmp_path, output=str(tmp_path / "other"), **task, **options)) == 2
    assert "calibration (=0)" in capsys.readouterr().err


def test_what_fewer_samples_than_channels_explain_is_picked_first() -> None:
    """Of six samples five directions are left: behind five picks all is known, whichever come."""
    u = torch.randn(6, 12, generator=GENERATOR, dtype=torch.float64)
    u = u - u.mean(0)
    weight = torch.randn(12, 12, generator=GENERATOR, dtype=torch.float64)
    reading = Reading(u.T @ u / len(u), weight.T @ weight)
    scores = reconstruction(GroupWeights("g", 12, (), (), readings=(reading,), kept=8))
    order = scores.argsort(descending=True).tolist()
    for place in range(5):
        left = {
            i: unexplained(u, [*order[:place], i], weight)
            for i in range(12)
            if i not in order[:place]
        }
        assert left[order[place]] <= min(left.values()) + 1e-9
    rest = [i for i in range(12) if i not in order[:5]]
    assert order[5:8] == rest[:3] and scores[rest[3:]].tolist() == [0] * 4

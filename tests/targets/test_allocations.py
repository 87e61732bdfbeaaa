"""Each way to divide a budget, beside its definition carried out one channel at a time."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import resnet, scramble, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.traced import Traced
from branchprune.planning.width_solver import Limit
from branchprune.targets.affine_norms import Affine
from branchprune.targets.allocations import ALLOCATIONS, Problem, _between
from branchprune.targets.choices import Choices
from branchprune.targets.error_curves import MeasuredErrors

SHARE = 0.4


def problem_of(make: Callable[[], nn.Module], seed: int = 0) -> Problem:
    torch.manual_seed(0)
    model, x = scramble(make()).eval(), torch.randn(16, 3, 8, 8)
    structure = bp.plan(model, x[:2], keep=0.5).structure
    _, macs = params_and_macs(amounts(model, structure), len(structure.groups))
    choices = Choices.of(structure, 0.1, {}, (), 1)
    limits = [Limit(macs, SHARE * macs.total(choices.widest))]
    errors = MeasuredErrors([x])
    return Problem(Traced(model, structure, x[:2]), choices, errors, limits, seed)


@pytest.fixture(scope="module")
def plain() -> Problem:
    return problem_of(lambda: vgg((16, 24, 32)))


@pytest.fixture(scope="module")
def residual() -> Problem:
    return problem_of(resnet)


def spent(problem: Problem, name: str) -> Tensor:
    found = ALLOCATIONS[name](problem)(problem.limits)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("which", ["plain", "residual"])
def test_it_is_within_the_budget_and_uses_it(
    name: str, which: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(which)
    kept, limit = spent(problem, name), problem.limits[0]
    used = limit.cost.total(kept) / limit.most
    assert 0.75 < used <= 1
    for width, allowed in zip(kept.tolist(), problem.choices.widths, strict=True):
        assert width in allowed


def norms(problem: Problem) -> list[tuple[float, int]]:
    """The L1 norm of every channel that may go, by group, the mean of each group being 1."""
    found = []
    structure, model = problem.traced.structure, problem.traced.model
    for i, allowed in enumerate(problem.choices.widths):
        if len(allowed) == 1:
            continue
        rows = []
        for name, layer in structure.linears.items():
            if any(piece.group == i for piece in layer.outputs):
                rows.append(model.get_submodule(name).weight.detach().abs().flatten(1).sum(1))
        each = torch.stack(rows).sum(0)
        found += [(float(norm), i) for norm in each / each.mean()]
    return found


@pytest.mark.parametrize("which", ["plain", "residual"])
def test_the_smallest_norms_of_all_go(which: str, request: pytest.FixtureRequest) -> None:
    problem: Problem = request.getfixturevalue(which)
    kept = problem.choices.widest
    for _, group in sorted(norms(problem)):
        if problem.limits[0].holds(kept):
            break
        kept[group] = max(float(kept[group]) - 1, problem.choices.widths[group][0])
    assert torch.equal(spent(problem, "global_l1"), kept)


def test_kinds_of_groups_keep_one_share_and_in_each_the_largest_norms(residual: Problem) -> None:
    kept, widest = spent(residual, "isomorphic_l1"), residual.choices.widest
    streams = [i for i, group in enumerate(residual.choices.rows) if len(group.layers) > 1]
    inner = [
        i
        for i, allowed in enumerate(residual.choices.widths)
        if len(allowed) > 1 and i not in streams
    ]
    shares = [float(kept[each].sum() / widest[each].sum()) for each in (streams, inner)]
    assert abs(shares[0] - shares[1]) < 0.1
    every = sorted(((norm, i) for norm, i in norms(residual) if i in inner), reverse=True)
    best = Counter(i for _, i in every[: int(kept[inner].sum())])
    assert best == {i: int(kept[i]) for i in inner}


@pytest.mark.parametrize("name", ["global_l1", "isomorphic_l1"])
def test_a_group_without_weights_goes_first(name: str) -> None:
    problem = problem_of(lambda: vgg((16, 24, 32)))
    place = next(i for i, row in enumerate(problem.choices.rows) if row.name == "4")
    nn.init.zeros_(problem.traced.model[4].weight)
    kept = spent(problem, name)
    assert kept[place] == problem.choices.narrowest[place] and problem.limits[0].holds(kept)


def test_kinds_are_of_groups_that_may_shrink(residual: Problem) -> None:
    widths = [*residual.choices.widths]
    inner = next(i for i, row in enumerate(residual.choices.rows) if len(row.layers) == 1)
    widths[inner] = widths[inner][-1:]
    fixed = replace(residual, choices=replace(residual.choices, widths=tuple(widths)))
    kept, least = spent(fixed, "isomorphic_l1"), fixed.choices.narrowest
    assert fixed.limits[0].cost.total(kept) > 0.75 * fixed.limits[0].most
    free = [i for i, row in enumerate(widths) if len(row) > 1]
    assert kept[inner] == widths[inner][0] and bool((kept[free] > least[free]).all())


def test_no_lower_threshold_is_within_the_budget(plain: Problem) -> None:
    kept, curves = spent(plain, "threshold"), plain.curves()
    widths = plain.choices.widths
    worst = max(
        curve[row.index(int(k))] for curve, row, k in zip(curves, widths, kept, strict=True)
    )
    for curve, row, k in zip(curves, widths, kept.tolist(), strict=True):
        place = row.index(int(k))
        assert place == 0 or curve[place - 1] > worst  # nothing narrower is good enough
    lower = max(value for curve in curves for value in curve if value < worst)
    wider = [
        next(k for k, value in zip(row, curve, strict=True) if value <= lower)
        for row, curve in zip(widths, curves, strict=True)
    ]
    assert not plain.limits[0].holds(torch.tensor(wider, dtype=torch.double))


def test_random_shares_follow_the_seed() -> None:
    every = [spent(problem_of(vgg, seed), "random") for seed in (0, 0, 1)]
    assert torch.equal(every[0], every[1]) and not torch.equal(every[0], every[2])
    shares = every[0] / problem_of(vgg).choices.widest
    assert float(shares.min()) < 0.9 * float(shares[:-1].max())


def test_the_best_of_random_ones_changes_the_output_least(plain: Problem) -> None:
    best = plain.errors.change(spent(plain, "best_of_random"))
    draw = torch.Generator().manual_seed(plain.seed)
    widths = torch.tensor([len(row) for row in plain.choices.widths])
    found = []
    for _ in range(30):
        shares = 0.1 + 0.9 * torch.rand(len(widths), generator=draw).double()
        for scale in torch.linspace(10, 0, 801).tolist():
            kept = plain.choices.nearest((scale * shares).clamp_max(1).tolist())
            if plain.limits[0].holds(kept):
                break
        found.append(plain.errors.change(kept))
    assert best == pytest.approx(min(found), rel=0.1) and best < sorted(found)[len(found) // 2]


def test_what_is_measured_is_better_than_scrambled(plain: Problem) -> None:
    right, wrong = (spent(plain, name) for name in ("additive", "scrambled"))
    solver = plain.solver()
    assert solver.error(right) < solver.error(wrong)
    places, values = [0.1, 0.4, 1.0], [5.0, 2.0, 0.0]
    for share in (0.05, 0.1, 0.2, 0.4, 0.9, 1.0):
        assert _between(places, values, share) == pytest.approx(np.interp(share, places, values))
    assert plain.errors.change(spent(plain, "selected")) <= plain.errors.change(right)


def test_a_learned_ranking_begins_with_squares_and_ends_with_the_best_of_thirty(
    plain: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By norms the widths are those of `global_l1`, but of squares of L2 norms."""
    tried: list[tuple[float, Tensor]] = []

    def change(kept: Tensor) -> float:
        tried.append((MeasuredErrors.change(plain.errors, kept), kept))
        return tried[-1][0]

    monkeypatch.setattr(plain.errors, "change", change)
    kept = spent(plain, "learned_ranking")
    assert len(tried) == 30 and torch.equal(min(tried, key=lambda each: each[0])[1], kept)
    by_square = []
    for i, allowed in enumerate(plain.choices.widths):
        if len(allowed) > 1:
            layer = plain.traced.model.get_submodule(plain.choices.rows[i].name)
            squares = layer.weight.detach().square().flatten(1).sum(1)  # type: ignore[union-attr]
            by_square += [(float(each), i) for each in squares / squares.mean()]
    start = plain.choices.widest
    for _, group in sorted(by_square):
        if plain.limits[0].holds(start):
            break
        start[group] = max(float(start[group]) - 1, plain.choices.widths[group][0])
    assert torch.equal(tried[0][1], start)


def test_a_child_scales_and_shifts_a_tenth_of_the_groups() -> None:
    draw = torch.Generator().manual_seed(1)
    ranking = Affine(torch.ones(40), torch.zeros(40))
    child = ranking.child(torch.full((40,), 0.5), draw)
    changed = child.scales != 1
    assert int(changed.sum()) == 4 and torch.equal(changed, child.shifts != 0)
    assert bool((child.scales > 0).all())
    few = Affine(torch.ones(3), torch.zeros(3)).child(torch.ones(3), draw)
    assert int((few.scales != 1).sum()) == 1

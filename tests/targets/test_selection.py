"""Of several ways to spend a budget the one is taken whose whole model changes least."""

import pytest
import torch

from branchprune.planning.cost_model import Polynomial
from branchprune.planning.width_solver import Limit, Solver
from branchprune.targets.selection import selected

GROUPS, WIDTH = 4, 20
COST = Polynomial(
    0.0,
    torch.ones(GROUPS, dtype=torch.double),
    torch.zeros(GROUPS, GROUPS, dtype=torch.double),
    torch.zeros(GROUPS, dtype=torch.double),
)
LIMITS = [Limit(COST, GROUPS * WIDTH / 2)]


def errors(scales):
    return [[s * (1 - k / WIDTH) ** 2 for k in range(1, WIDTH + 1)] for s in scales]


def truth(scales):
    """The change of a whole model whose groups lose by other scales than was predicted."""
    tables = [torch.tensor([0.0, *row]) for row in errors(scales)]
    return lambda kept: sum(float(t[int(k)]) for t, k in zip(tables, kept, strict=True))


def one_share(limits):
    return torch.full((GROUPS,), WIDTH / 2, dtype=torch.double)


def choose(predicted, change):
    solver = Solver([[*range(1, WIDTH + 1)]] * GROUPS, errors(predicted))
    return solver, *selected(solver, one_share, LIMITS, change)


def test_a_right_prediction_is_kept():
    scales = (1.0, 3.0, 0.2, 9.0)
    solver, best, uniform = choose(scales, truth(scales))
    assert torch.equal(best.kept, solver.solve(LIMITS)) or best.change <= truth(scales)(
        solver.solve(LIMITS)
    )
    assert best.change < uniform.change == truth(scales)(one_share(LIMITS))


@pytest.mark.parametrize("real", [(3.0, 1.0, 9.0, 0.2), (1.0, 1.0, 1.0, 1.0)])
def test_a_wrong_prediction_is_mended_by_what_whole_models_lose(real):
    predicted = (1.0, 3.0, 0.5, 4.0)
    change = truth(real)
    solver, best, uniform = choose(predicted, change)
    assert best.change < change(solver.solve(LIMITS))
    assert best.change <= uniform.change == change(one_share(LIMITS))
    assert best.change == change(best.kept) and LIMITS[0].holds(best.kept)
    assert torch.equal(best.way(LIMITS), best.kept)


def test_one_share_is_filled_where_it_is_best():
    limits = [Limit(COST, GROUPS * WIDTH / 2 + 3)]
    solver = Solver([[*range(1, WIDTH + 1)]] * GROUPS, errors((1.0, 3.0, 0.5, 4.0)))

    def change(kept):  # none that is far from one share is good; of others the widest is best
        off = (kept - WIDTH / 2).abs().max() - 3
        return float(off.clamp_min(0)) + 1e-3 * (GROUPS * WIDTH - float(kept.sum()))

    best, uniform = selected(solver, one_share, limits, change)
    assert uniform.kept.equal(one_share(limits)) and float(uniform.kept.sum()) == limits[0].most - 3
    assert float(best.kept.sum()) == limits[0].most and bool((best.kept >= uniform.kept).all())
    assert torch.equal(best.way(limits), best.kept)


def test_it_is_the_same_every_time():
    scales = (1.0, 3.0, 0.5, 4.0), (3.0, 1.0, 9.0, 0.2)
    first, second = (choose(scales[0], truth(scales[1]))[1] for _ in range(2))
    assert torch.equal(first.kept, second.kept)

"""Widths within limits, beside the best of all that there are."""

import itertools
import random

import pytest
import torch
from models import resnet, vgg

import branchprune as bp
from branchprune.planning.cost_model import params_and_macs
from branchprune.planning.costs import amounts
from branchprune.planning.memory_model import memory_of
from branchprune.planning.width_solver import Limit, Solver


def problem(make, seed, places=99):
    """Return a solver with random falling errors, and the parameters and multiply-adds."""
    draw = random.Random(seed)
    model = make().eval()
    plan = bp.plan(model, torch.randn(1, 3, 8, 8), keep=0.5)
    widths, errors = [], []
    for group in plan.groups:
        most = min(places, group.width) if group.pruned else 1
        row = [round(group.width * (place + 1) / most) for place in range(most)]
        scale, power = 10 ** draw.uniform(-1, 1), draw.uniform(0.5, 3)
        widths.append(row)
        errors.append([scale * (1 - width / row[-1]) ** power for width in row])
    costs = params_and_macs(amounts(model, plan.structure), len(plan.groups))
    return Solver(widths, errors), costs, widths, errors


def best_of_all(widths, errors, limits):
    """Return the least error of all widths within limits, all of them tried."""
    kept, total = (
        torch.cartesian_prod(*(torch.tensor(row, dtype=torch.double) for row in rows))
        for rows in (widths, errors)
    )
    total = total.sum(1)
    for limit in limits:
        cost = limit.cost
        found = cost.constant + kept @ cost.linear + kept.square() @ cost.squares
        found += torch.einsum("ng,gh,nh->n", kept, cost.products, kept) / 2
        total[found > limit.most] = torch.inf
    return float(total.min())


@pytest.mark.parametrize(("make", "places"), [(vgg, 99), (resnet, 4)])
@pytest.mark.parametrize("targets", [(0.5,), (0.3,), (0.5, 0.4)])
def test_it_is_near_the_best_of_all(make, places, targets):
    """Mostly it, and else little above it, at all widths; a few widths leave more between them."""
    found = []
    for seed in range(6):
        solver, costs, widths, errors = problem(make, seed, places)
        wide = solver.widths[:, -1]
        pairs = zip(costs[::-1], targets, strict=False)
        limits = [Limit(cost, share * cost.total(wide)) for cost, share in pairs]
        kept = solver.solve(limits)
        assert all(limit.holds(kept) for limit in limits)
        assert all(int(k) in row for k, row in zip(kept, widths, strict=True))
        found.append(solver.error(kept) / best_of_all(widths, errors, limits))
    assert min(found) > 1 - 1e-9
    assert max(found) < (1.001 if places == 99 else 1.25)
    assert sum(ratio < 1 + 1e-9 for ratio in found) >= 4


def test_it_is_near_the_best_of_all_where_a_cost_is_the_most_of_several():
    """Memory has kinks: where two times have as much live, no group alone makes it less."""
    found = []
    for seed in range(8):
        model, draw = vgg().eval(), random.Random(seed)
        plan = bp.plan(model, torch.randn(64, 3, 8, 8), keep=0.5)
        memory = memory_of(model, plan.structure)
        widths = [
            [round(group.width * part / 6) for part in range(1, 7)]
            if group.pruned
            else [group.width]
            for group in plan.groups
        ]
        errors = [
            sorted((draw.random() ** 3 * scale for _ in row), reverse=True)
            for row in widths
            for scale in [10 ** draw.uniform(-1, 1)]
        ]
        solver = Solver(widths, errors)
        wide, narrow = (memory.total(solver.widths[:, at]) for at in (-1, 0))
        limit = Limit(memory, narrow + draw.choice([0.2, 0.5, 0.8]) * (wide - narrow))
        kept = solver.solve([limit])
        every = map(torch.tensor, itertools.product(*widths))
        least = min(solver.error(each) for w in every if limit.holds(each := w.double()))
        assert limit.holds(kept)
        found.append(solver.error(kept) / least)
    assert min(found) > 1 - 1e-9 and max(found) < 1.02
    assert sum(ratio < 1 + 1e-9 for ratio in found) >= 6


def test_limits_that_hold_anyway_and_those_that_cannot():
    solver, (params, macs), *_ = problem(vgg, 0)
    wide, narrow = solver.widths[:, -1], solver.widths[:, 0]
    assert torch.equal(solver.solve([Limit(params, params.total(wide))]), wide)
    least = Limit(macs, macs.total(narrow))
    assert torch.equal(solver.solve([least]), narrow)
    assert solver.solve([Limit(macs, macs.total(narrow) - 1)]) is None
    assert solver.solve([Limit(params, params.total(wide)), Limit(macs, 0)]) is None


def test_a_group_that_matters_more_stays_wider():
    model = vgg((16, 16, 16))
    plan = bp.plan(model.eval(), torch.randn(1, 3, 8, 8), keep=0.5)
    widths = [[*range(1, g.width + 1)] if g.pruned else [g.width] for g in plan.groups]
    params, _ = params_and_macs(amounts(model, plan.structure), len(plan.groups))
    kept = {}
    for weight in (1.0, 10.0):
        errors = [[(1 - k / row[-1]) ** 2 for k in row] for row in widths]
        errors[0] = [weight * error for error in errors[0]]
        solver = Solver(widths, errors)
        kept[weight] = solver.solve([Limit(params, 0.5 * params.total(solver.widths[:, -1]))])
    assert kept[10.0][0] > kept[1.0][0]
    assert kept[10.0][1:].sum() < kept[1.0][1:].sum()

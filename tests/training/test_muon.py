"""The optimizer for convolutions: against singular value decompositions, and torch's SGD."""

import copy

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (5, 5)])
def test_singular_vectors_stay_and_values_become_alike(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.double)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1.5, len(values), dtype=torch.double)) @ v
    middle = u.T @ orthogonalised(matrix) @ v.T  # diagonal where the singular vectors are the same
    assert torch.allclose(middle, torch.diag(middle.diagonal()), atol=1e-12)
    assert middle.diagonal().min() > 0.5 and middle.diagonal().max() < 1.3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4))


def train(model, optimizer, steps=4):
    """Take steps with the same random inputs; return the model's states before and after each."""
    states = [copy.deepcopy(model.state_dict())]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        states.append(copy.deepcopy(model.state_dict()))
    return states


def test_all_but_convolutions_move_as_with_sgd():
    mine, other = network(), network()
    for model in (mine, other):
        model[0].weight.requires_grad_(False)
    settings = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.7}
    theirs = train(other, torch.optim.SGD(other.parameters(), nesterov=True, **settings))
    ours = train(mine, Muon(mine.parameters(), **settings))
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            assert torch.allclose(a[name].double(), b[name].double(), atol=1e-6), name


def test_a_convolution_moves_by_a_part_of_its_size_along_the_momentum():
    model, gradients = network(), []
    model[0].weight.register_post_accumulate_grad_hook(lambda w: gradients.append(w.grad.clone()))
    states = train(model, Muon(model.parameters(), lr=0.1, weight_decay=0.3, relative_step=0.2))
    weights = [state["0.weight"].flatten(1) for state in states]
    momentum = torch.zeros_like(weights[0])
    for before, after, gradient in zip(weights, weights[1:], gradients, strict=False):
        momentum = 0.95 * momentum + gradient.flatten(1)
        change = before - after
        assert float(change.norm()) == pytest.approx(0.02 * float(before.norm()), rel=1e-4)
        u, values, v = torch.linalg.svd(gradient.flatten(1) + 0.95 * momentum, full_matrices=False)
        middle = u.T @ change @ v.T
        apart = middle - torch.diag(middle.diagonal())
        assert apart.norm() < 1e-3 * change.norm()
        alike = middle.diagonal()[values > 0.02 * values.norm()]
        assert alike.min() > 0.35 * alike.max() > 0


def test_steps_do_not_depend_on_the_scale_of_the_loss_or_the_weights():
    """In front of a norm, a weight twice as large is the same function."""
    results = []
    for scale in (1.0, 8.0):
        model = network()
        with torch.no_grad():
            model[0].weight.mul_(scale)
            model[0].bias.mul_(scale)
            model[1].eps = 1e-12
        parameters = [model[0].weight]
        states = train(model, Muon(parameters, lr=0.1))
        results.append([state["0.weight"] / scale for state in states])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-4 * float(a.norm()))


def test_zeros_do_not_stay_zeros():
    weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert float(weight.detach().norm()) == pytest.approx(0.05 * 1e-4 * 108**0.5, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_gets_no_gradient_stays_where_it_is(dtype):
    weight = nn.Parameter(torch.ones(2, 2, 1, 1, dtype=dtype))
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.tensor([[1.0, 0.0], [0.0, -0.5]], dtype=dtype).view_as(weight)
    optimizer.step()
    moved = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(weight, moved) and not torch.equal(moved, torch.ones_like(moved))


def test_a_learning_rate_in_a_tensor_stays_as_it_is():
    rate, weight = torch.tensor(0.1), nn.Parameter(torch.ones(2, 2, 1, 1))
    optimizer = Muon([weight], lr=rate)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert float(rate) == float(torch.tensor(0.1))


def test_a_closure_is_evaluated_with_gradients():
    weight = nn.Parameter(torch.full((2, 2), 3.0))

    def closure():
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert Muon([weight], lr=0.1, momentum=0).step(closure).item() == 36
    assert torch.allclose(weight, torch.full((2, 2), 3 - 0.1 * 6.0))


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(bp.PruneError, match=r"gradient of shape \[5, 2\] is sparse"):
        Muon(table.parameters()).step()


def test_a_negative_number_is_refused():
    with pytest.raises(bp.PruneError, match=r"relative_step \(=-1\) must not be negative"):
        Muon(network().parameters(), relative_step=-1)

"""A group narrow alone: what the dense model then computes is what a blended one does at α = 0."""

from typing import Any

import pytest
import torch
from models import relative, resnet, scramble
from torch import Tensor, nn

import branchprune as bp
from branchprune.criteria.column_selection import reconstruction
from branchprune.criteria.group_weights import group_weights
from branchprune.criteria.selection import select
from branchprune.targets.measurement import RIDGE, Measurement, halves


def measured(model: nn.Module, x: Tensor) -> tuple[bp.Plan, Measurement]:
    plan = bp.plan(model, x[:2], keep=0.5)
    # Both halves are the same, so that what is fitted on one is judged on the same inputs.
    return plan, Measurement(model, plan.structure, [x, x], plan.pruned)


def outputs_with(measurement: Measurement, group: int, chosen: Tensor) -> Tensor:
    """The outputs that a change is computed from."""
    found: list[Tensor] = []
    original = measurement._outputs

    def note(batches: Any) -> Any:
        outputs = original(batches)
        found.extend(outputs[0])
        return outputs

    measurement._outputs = note  # type: ignore[method-assign]
    measurement.change({group: chosen})
    return found[0]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_is_the_fitted_branch_of_that_group(index: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    layers += [nn.Conv2d(12, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)]
    model = scramble(nn.Sequential(*layers)).double().eval()
    x = torch.randn(64, 3, 8, 8).double()
    plan, measurement = measured(model, x)
    group = plan.pruned[index]
    alone = bp.plan(model, x[:2], keep={plan.groups[group].name: 0.5})
    blended = bp.fit_expand(bp.attach(model, alone, "reconstruction", batches=[x]), [x], RIDGE)
    blended.alpha = 0.0
    half = [reader for reader in measurement.listeners[0] if reader.group == group]
    readings = [
        reader.reading(measurement.model.get_submodule(reader.layer.name)) for reader in half
    ]
    kept = alone.groups[group].kept
    weights = group_weights(model, plan.structure, group, model, readings, kept)
    chosen = select(reconstruction(weights), kept, 1)
    with torch.no_grad():
        expected = bp.collapse(blended).eval()(x)
    assert relative(expected, outputs_with(measurement, group, chosen)) < 1e-10


def test_all_channels_are_the_dense_model_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("branchprune.targets.measurement.RIDGE", 1e-9)
    torch.manual_seed(0)
    model = scramble(resnet()).eval()
    x = torch.randn(32, 3, 8, 8)
    plan, measurement = measured(model, x)
    for group in plan.pruned:
        every = torch.arange(plan.groups[group].width)
        assert measurement.change({group: every[:1]}) > 0.001
        assert measurement.change({group: every}) < 1e-6
    again = measurement._outputs([x])
    assert all(map(torch.equal, measurement.dense[0], again[0]))
    modules: list[Any] = [*measurement.model.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert not any(module.training for module in modules)


class Product(nn.Module):
    """Query and key, whose channels no layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is made of the products, x of shape (N, 5, 6)."""
        products = self.query(x) @ self.key(x).transpose(1, 2)
        outputs: Tensor = self.head(products.softmax(-1)).mean(1)
        return outputs


def test_channels_that_no_layer_reads_are_zero() -> None:
    torch.manual_seed(0)
    model, x = Product().eval(), torch.randn(16, 5, 6)
    plan, measurement = measured(model, x)
    [group] = [i for i in plan.pruned if plan.groups[i].name == "query"]
    chosen = torch.tensor([1, 4, 6])
    query, key = model.query(x)[..., chosen], model.key(x)[..., chosen]
    with torch.no_grad():
        expected = model.head((query @ key.transpose(1, 2)).softmax(-1)).mean(1)
    assert torch.allclose(outputs_with(measurement, group, chosen), expected, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_convolutions_are_mapped_group_by_group(groups: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3, groups=groups), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 5)).double().eval()
    x = torch.randn(64, 3, 8, 8).double()
    plan, measurement = measured(model, x)
    alone = bp.plan(model, x[:2], keep={"0": 0.5})
    blended = bp.attach(model, alone, lambda group: torch.arange(16.0).flip(0) % 4, batches=[x])
    blended = bp.fit_expand(blended, [x], RIDGE)
    blended.alpha = 0.0
    scores = torch.arange(16.0).flip(0) % 4
    [group] = [i for i in plan.pruned if plan.groups[i].name == "0"]
    blocks = plan.structure.groups[group].blocks
    assert blocks == groups
    chosen = select(scores, 8, blocks, plan.structure.groups[group].strata)
    with torch.no_grad():
        expected = bp.collapse(blended)(x)
    assert relative(expected, outputs_with(measurement, group, chosen)) < 1e-10


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight, into which nothing can be folded."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x by the weight without mean and of norm 1."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("size", [10, 32])
def test_what_standardised_convolutions_make_and_read_is_zero(size: int) -> None:
    torch.manual_seed(0)
    first, second = Standardised(3, 16, 3), Standardised(16, 8, 3)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), head).eval()
    x = torch.randn(8, 3, size, size)
    plan, measurement = measured(model, x)
    [group] = [i for i in plan.pruned if plan.groups[i].name == "0"]
    chosen = torch.tensor([0, 3, 7, 9, 12])
    mask = torch.zeros(16).index_fill(0, chosen, 1)[:, None, None]
    with torch.no_grad():
        expected = model[1:](first(x) * mask)
    assert torch.allclose(outputs_with(measurement, group, chosen), expected, atol=1e-6)


@torch.no_grad()
def test_what_is_fitted_on_one_half_is_judged_on_the_other() -> None:
    """A head that reads one position an image learns half of the images by heart, if it may."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 1)).eval()
    x, other = torch.randn(40, 12), torch.randn(40, 12)
    plan, same = measured(model, x)
    [group] = plan.pruned
    halves = Measurement(model, plan.structure, [x, other], plan.pruned)
    chosen = torch.arange(30)
    fitted = [model[:2](each)[:, chosen].double() for each in (x, other)]
    wide = [model[:2](each).double() for each in (x, other)]
    error, size = 0.0, 0.0
    outputs = torch.cat([model(x), model(other)]).double()
    for here, there in ((0, 1), (1, 0)):
        square = fitted[there].T @ fitted[there]
        ridge = square + RIDGE * square.diagonal().mean() * torch.eye(30)
        matrix = torch.linalg.solve(ridge, fitted[there].T @ wide[there])
        change = (fitted[here] @ matrix - wide[here]) @ model[2].weight.double().T
        error += float(change.square().sum())
    size = float((outputs - outputs.mean(0)).square().sum())
    assert halves.change({group: chosen}) == pytest.approx(error / size, rel=1e-3)
    assert halves.change({group: chosen}) > 2 * same.change({group: chosen})


def test_one_batch_is_cut_into_every_second_example() -> None:
    x = torch.arange(5)
    assert [[each.tolist() for each in half] for half in halves([x])] == [[[0, 2, 4]], [[1, 3]]]
    assert len(halves([(x, x[:3])])) == 1
    assert len(halves([{"x": x, "y": x + 1}])) == 2 and len(halves([x[:1]])) == 1
    assert halves([x, x, x])[1][0] is x and len(halves([x, x, x])[0]) == 2


class Timewise(nn.Module):
    """A first dimension that is time, with a parameter for each step of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)
        self.place = nn.Parameter(torch.randn(10, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is made of x, shape (10, N, 8)."""
        outputs: Tensor = self.b(self.a(x + self.place).tanh()).mean(0)
        return outputs


def test_what_is_no_batch_of_examples_is_not_cut() -> None:
    torch.manual_seed(0)
    model, x = Timewise().eval(), torch.randn(10, 4, 8)
    plan = bp.plan(model, x, 0.5)
    assert Measurement(model, plan.structure, [x], plan.pruned).halves == [[x]]
    pair = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    plan = bp.plan(pair, x[0, :2, :3], 0.5)
    assert len(Measurement(pair, plan.structure, [x[0, :2, :3]], plan.pruned).halves) == 1


def test_whatever_forward_raises_on_batches_is_told_of_them() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 6), nn.Linear(6, 2)).eval()
    ids = torch.randint(50, (4, 3))
    with pytest.raises(bp.PruneError, match=r"batches must be inputs of forward.*out of range"):
        bp.plan(model, ids, target={"macs": 0.5}, batches=[ids + 50])

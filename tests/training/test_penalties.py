"""Penalties, against gradients of what they say that they add."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from models import resnet, scramble, vgg
from small_training import loader, network, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import branchprune as bp
from branchprune.criteria.channel_weights import ChannelWeights
from branchprune.criteria.scores import l2
from branchprune.experiments.run.sparsity_training import Regularize, going
from branchprune.lightning import ClassificationTask
from branchprune.training.penalties import GroupLasso, GrowingPenalty, Lasso

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def added(model: nn.Module, act: Callable[[], None]) -> dict[str, Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    act()
    return {name: p.grad - 3 for name, p in model.named_parameters() if p.grad is not None}


def gradient(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(each, expected[name], atol=1e-5) for name, each in found.items()
    )


def rows_of_stream(model: nn.Module) -> Tensor:
    """Return what makes the channels of the residual stream, by hand, shape (C, n)."""
    layers = [
        model.get_submodule(name) for name in ("0", "3.conv2", "4.conv2", "1", "3.bn2", "4.bn2")
    ]
    tensors = [each for layer in layers for each in (layer.weight, layer.bias) if each is not None]
    return torch.cat([each.reshape(len(each), -1) for each in tensors], 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_group_lasso_of_a_stream_is_of_all_that_makes_it(memory: torch.memory_format) -> None:
    model = scramble(resnet()).to(memory_format=memory)  # type: ignore[call-overload]
    plan = bp.plan(model, X)
    [stream] = [i for i in plan.pruned if "3.conv2" in plan.groups[i].layers]
    weights = ChannelWeights(model, plan.structure, [stream])
    penalty = GroupLasso(weights, 0.1)
    rows = rows_of_stream(model)
    expected = gradient(model, 0.1 * rows.shape[1] ** 0.5 * rows.norm(dim=1).sum())
    assert same(added(model, lambda: penalty.add_gradient(0.5)), expected)
    assert sorted(weights.rows()[stream][2].tolist()) == sorted(rows[2].tolist())


def test_group_lasso_of_a_channel_that_is_0_is_0() -> None:
    model = scramble(vgg())
    plan = bp.plan(model, X)
    weights = ChannelWeights(model, plan.structure, plan.pruned)
    weights.clear({plan.pruned[0]: torch.tensor([1, 3])})
    assert not any(layer.weight[[1, 3]].any() or layer.bias[[1, 3]].any() for layer in model[:2])
    assert model[0].weight[0].all() and model[4].weight[1].all()
    found = added(model, lambda: GroupLasso(weights, 1.0).add_gradient(0.0))
    assert found["0.weight"].isfinite().all() and not found["0.weight"][[1, 3]].any()


def test_lasso_pulls_every_layer_but_no_bias_and_no_norm() -> None:
    model = scramble(vgg())
    plan = bp.plan(model, X)
    layers = [each for each in model if isinstance(each, nn.Conv2d | nn.Linear)]
    expected = gradient(
        model, 0.2 * torch.stack([each.weight.abs().sum() for each in layers]).sum()
    )
    assert same(added(model, lambda: Lasso(model, plan.structure, 0.2).add_gradient(0.9)), expected)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_a_growing_penalty_pulls_those_that_go(progress: float) -> None:
    model = scramble(vgg())
    plan = bp.plan(model, X)
    first, *_ = plan.pruned
    weights = ChannelWeights(model, plan.structure, plan.pruned)
    penalty = GrowingPenalty(weights, {first: torch.tensor([0, 5])}, 0.4)
    parts = [
        each[[0, 5]] for each in (model[0].weight, model[0].bias, model[1].weight, model[1].bias)
    ]
    value = torch.stack([part.square().sum() for part in parts]).sum()
    expected = gradient(model, 0.4 * progress / 2 * value)
    assert same(added(model, lambda: penalty.add_gradient(progress)), expected)


def test_what_has_no_gradient_is_left_alone() -> None:
    model = scramble(vgg())
    plan = bp.plan(model, X)
    model[0].weight.requires_grad_(False)
    model[1].weight.grad = torch.zeros(8)
    weights = ChannelWeights(model, plan.structure, plan.pruned)
    GroupLasso(weights, 1.0).add_gradient(0.0)
    assert model[0].weight.grad is None and model[1].weight.grad.any()


def test_those_that_go_are_the_smallest_and_of_every_block_alike() -> None:
    model = scramble(vgg())
    plan = bp.plan(model, X)
    for group, found in going(model, plan, l2).items():
        layer = model.get_submodule(plan.groups[group].name)
        norms = layer.weight.detach().flatten(1).norm(dim=1)  # type: ignore[union-attr]
        assert len(found) == plan.groups[group].width - plan.groups[group].kept
        assert set(found.tolist()) == set(norms.topk(len(found), largest=False).indices.tolist())


def test_what_does_not_learn_is_not_set_to_0() -> None:
    """It would stay 0, also where its channel returns."""
    model = scramble(vgg())
    plan = bp.plan(model, torch.randn(1, 3, 8, 8))
    norm, conv = model.get_submodule("1"), model.get_submodule("0")
    norm.requires_grad_(False)
    before = norm.state_dict()["weight"].clone()
    ChannelWeights(model, plan.structure, plan.pruned).clear({plan.pruned[0]: torch.tensor([2])})
    assert torch.equal(norm.state_dict()["weight"], before)
    assert (conv.state_dict()["weight"].flatten(1).abs().sum(1) == 0).nonzero().tolist() == [[2]]


class Stream(IterableDataset[list[Tensor]]):
    """Examples whose number is not known before."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from ([x, y] for x, y in loader().dataset)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(loader(), [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]), (Stream(), [0, 0, 0, 0.5, 0.5, 0.5])],
)
def test_progress_is_that_of_the_training(data: object, expected: list[float]) -> None:
    seen: list[float] = []

    class Noted:
        def add_gradient(self, progress: float) -> None:
            seen.append(progress)

    batches = DataLoader(data, batch_size=8) if isinstance(data, Stream) else data
    fit = trainer(2, Regularize(Noted()), limit_val_batches=0).fit
    fit(ClassificationTask(network()), batches, loader())
    assert seen == pytest.approx(expected)

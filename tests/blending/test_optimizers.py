"""An optimizer that does not train the branch is told at its first step."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD

import branchprune as bp
from branchprune.blending import optimizer_watch

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


def made() -> tuple[nn.Module, bp.Blended]:
    model = network()
    return model, bp.attach(model, bp.plan(model, X))


def step(blended: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    blended(X).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_all_of_the_blended_model(alpha):
    _, blended = made()
    blended.alpha = alpha
    optimizer = SGD(blended.parameters(), 0.1)
    for _ in range(3):
        step(blended, optimizer)
    assert all(watch.blended() is not blended for watch in optimizer_watch._WATCHED)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_the_wide_path_alone(alpha):
    _, blended = made()
    blended.alpha = alpha
    with pytest.raises(bp.PruneError) as error:
        step(blended, SGD(blended.model.parameters(), 0.1))
    assert "does not train reduce.0.weights.0, reduce.3.weights.0, expand.3" in str(error.value)
    assert "and 3 more of the branch" in str(error.value)
    assert "holds model.1.weight, model.1.bias, which nothing trains" in str(error.value)


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_the_original(alpha):
    model, blended = made()
    blended.alpha = alpha
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(bp.PruneError, match=r"optimizer \(Adam\) was built before attach"):
        step(blended, torch.optim.Adam(model.parameters()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_original_of_the_one_that_was_fitted():
    model, blended = made()
    fitted = bp.fit_expand(blended, [X])
    with pytest.raises(bp.PruneError, match="was built before attach"):
        step(fitted, SGD(model.parameters(), 0.1))


def test_the_original_may_be_trained_beside_it():
    model, blended = made()
    mine, other = SGD(blended.parameters(), 0.1), SGD(model.parameters(), 0.1)
    model(X).sum().backward()
    other.step()
    step(blended, mine, other)


def test_parts_in_several_optimizers():
    _, blended = made()
    ends = [*blended.reduce.parameters(), *blended.expand.parameters()]
    rest = [*blended.model.parameters(), *blended.twin.parameters()]
    step(blended, SGD(rest, 0.1), SGD(ends, 0.1))


def test_a_part_of_the_branch_is_a_warning_and_a_frozen_one_is_none():
    _, blended = made()
    blended.expand.requires_grad_(False)
    chosen = [p for n, p in blended.named_parameters() if not n.startswith("twin.1.")]
    with pytest.warns(UserWarning, match=r"does not train twin\.1\.weight, twin\.1\.bias of"):
        step(blended, SGD(chosen, 0.1))
    _, blended = made()
    blended.twin.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(blended, SGD([p for p in blended.parameters() if p.requires_grad], 0.1))


def test_nothing_is_kept_of_a_blended_model_that_is_gone():
    gc.collect()
    optimizer_watch._WATCHED.clear()  # those that other tests have not trained
    model, blended = made()
    gone = weakref.ref(blended)
    del blended
    gc.collect()
    assert gone() is None and not optimizer_watch._WATCHED
    step(model, SGD(model.parameters(), 0.1))


class ByData(torch.optim.Optimizer):
    """Writes into `.data`, as optimizers of older packages do; no version grows."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.data, alpha=-0.1)


@pytest.mark.parametrize("duplicate", [False, True])
def test_optimizers_that_write_data_are_accepted(duplicate):
    _, blended = made()
    blended.alpha = 0
    step(blended, ByData(blended.parameters()))
    blended = copy.deepcopy(blended) if duplicate else blended
    small = bp.collapse(blended.eval())
    torch.testing.assert_close(small(X), blended(X), rtol=1e-4, atol=1e-5)


def test_training_by_hand_with_the_wrong_parameters_is_told_by_collapse():
    model, blended = made()
    blended.alpha = 0
    step(blended)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    with pytest.warns(UserWarning, match="no parameter has changed"):
        bp.collapse(blended)

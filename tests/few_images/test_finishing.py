"""What is done when a narrow model has learnt."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import branchprune as bp
from branchprune.few_images.finishing import Averaging, recalibrate, refit
from branchprune.few_images.start import fitted_start
from branchprune.few_images.student import Student
from branchprune.models import VGG


def test_weights_are_averaged_over_the_last_steps() -> None:
    weight = nn.Parameter(torch.zeros(3))
    averaging = Averaging([weight], 0.25)
    for step in range(1, 9):
        weight.data = torch.full((3,), float(step))
        averaging(step, 8, 0.0)
    averaging.apply()
    assert torch.equal(weight, torch.full((3,), 7.5))
    none = Averaging([weight], 0.0)
    none(8, 8, 0.0)
    none.apply()
    assert torch.equal(weight, torch.full((3,), 7.5))


def test_norms_take_the_mean_statistics_of_some_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    x = torch.randn(4, 8, 3, 5, 5)
    recalibrate(model, iter(x), 3)
    norm = model[0]
    torch.testing.assert_close(norm.running_mean, x[:3].mean((0, 1, 3, 4)))
    wanted = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in x[:3]]).mean(0)
    torch.testing.assert_close(norm.running_var, wanted)
    assert not norm.training


def test_the_end_before_the_head_is_fitted_by_least_squares() -> None:
    torch.manual_seed(0)
    model, x = VGG([[8], [12]]).double().eval(), torch.randn(64, 3, 8, 8).double()
    student = Student(fitted_start(model, bp.plan(model, x[:2], 0.5), x))
    [end] = student.ends.values()
    with torch.no_grad():
        end.weights[0].normal_()
    seen: list[Tensor] = []
    hook = end.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    student.model.eval()(x)
    hook.remove()
    wide = model.pool(model.features(x)).flatten(1)
    refit(student, model, itertools.repeat(x[:32]), 0)
    before = end.weights[0].clone()
    refit(student, model, iter(x.split(32)), 2)
    square = seen[0].T @ seen[0]
    square += 0.1 * square.diagonal().mean() * torch.eye(len(square))
    wanted = torch.linalg.solve(square, seen[0].T @ wide).T
    assert not torch.allclose(before, wanted, rtol=0.01)
    torch.testing.assert_close(end.weights[0].detach(), wanted.detach())


class TwoLevels(nn.Module):
    """One head reads the features at two sizes, as those of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.down = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)
        self.head, self.boxes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs at both sizes, and others at the larger one."""
        features = self.features(x).relu()
        return self.boxes(features), self.head(features), self.head(self.down(features))


def test_an_end_is_fitted_to_all_calls_of_all_heads_behind_it() -> None:
    torch.manual_seed(0)
    model, x = TwoLevels().double().eval(), torch.randn(6, 3, 8, 8).double()
    student = Student(fitted_start(model, bp.plan(model, x[:2], 0.5), x))
    [end] = student.ends.values()
    seen: list[Tensor] = []
    hook = end.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    student.model.eval()(x)
    hook.remove()
    with torch.no_grad():
        end.weights[0].normal_()
    refit(student, model, iter([x]), 1)
    wide = model.features(x).relu()
    levels = wide, wide, model.down(wide)
    narrow = torch.cat([level.transpose(0, 1).flatten(1) for level in seen], 1)
    wanted = torch.cat([level.transpose(0, 1).flatten(1) for level in levels], 1)
    square = narrow @ narrow.T
    square += 0.1 * square.diagonal().mean() * torch.eye(len(square))
    fitted = torch.linalg.solve(square, narrow @ wanted.T).T
    torch.testing.assert_close(end.weights[0].detach(), fitted.detach())

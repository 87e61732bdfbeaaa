"""Where features are compared: at the head, at the pooling before it, at every junction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import vgg
from torch import Tensor, nn
from torch.nn.functional import conv2d

import branchprune as bp
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.matching import mismatch
from branchprune.few_images.start import fitted_start
from branchprune.few_images.student import Student
from branchprune.few_images.targets import AT
from branchprune.models import VGG, ResNet


def student_of(model: nn.Module) -> tuple[Student, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    return Student(fitted_start(model.eval(), bp.plan(model, x[:2], 0.5), x)), x


def inputs_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, a: found.append(a[0]))
    model.eval()(x)
    hook.remove()
    return found[0]


def test_maps_are_those_that_are_pooled_through_the_end_of_the_head() -> None:
    model = VGG([[8], [12]])
    student, x = student_of(model)
    targets = AT["maps"](student)
    with torch.no_grad(), targets.reading(student.model, model) as (found, wanted):
        student.model.eval()(x), model(x)
        expanded = targets.expanded(found)
        narrow = inputs_of(student.model, "pool", x)
    [matrix] = [weight for end in student.ends.values() for weight in end.parameters()]
    torch.testing.assert_close(expanded["pool"][0], conv2d(narrow, matrix[:, :, None, None]))
    torch.testing.assert_close(wanted["pool"][0], inputs_of(model, "pool", x))
    assert not targets.own


def test_maps_without_a_global_pooling_are_refused() -> None:
    student, _ = student_of(vgg())
    with pytest.raises(bp.PruneError, match=r"match \(='maps'\) needs one module of global"):
        AT["maps"](student)


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8)])
def test_maps_that_reach_the_head_through_something_else_are_refused(between: nn.Module) -> None:
    pooling = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pooling, between, nn.Linear(8, 2))
    exclude = ["0"] if isinstance(between, nn.Linear) else []
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    student = Student(fitted_start(model.eval(), bp.plan(model, x[:2], exclude=exclude), x))
    with pytest.raises(bp.PruneError, match=r"needs 5 to read what 2 pools, as it is, and some"):
        AT["maps"](student)


def test_junctions_are_the_inputs_of_all_layers_that_read_what_shrinks() -> None:
    model = VGG([[8, 8], [12]])
    student, x = student_of(model)
    targets = AT["junctions"](student)
    assert {*targets.ends} == {"features.3", "features.7", "classifier"}
    with torch.no_grad(), targets.reading(student.model, model) as (found, wanted):
        student.model.eval()(x), model(x)
        expanded = targets.expanded(found)
    for name in ("features.3", "features.7"):
        matrix = student.blended.expand.get_submodule(name).weights[0]
        narrow = conv2d(inputs_of(student.model, name, x), matrix[:, :, None, None])
        torch.testing.assert_close(expanded[name][0], narrow)
        torch.testing.assert_close(wanted[name][0], inputs_of(model, name, x))
    assert len(targets.own) == 2  # the head's own end is the student's


def test_of_several_layers_that_read_one_tensor_one_is_compared() -> None:
    model = ResNet(6, (8, 12))  # the second stage begins with two readers of the first
    student, _ = student_of(model)
    ends = AT["junctions"](student).ends
    readers = {"stages.1.0.conv1", "stages.1.0.shortcut.0"}
    assert len(readers & {*ends}) == 1 and len({*map(id, ends.values())}) == len(ends)


@pytest.mark.parametrize("match", ["head", "maps", "junctions", "outputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_of_them_is_learnt(match: Any, dtype: torch.dtype) -> None:
    model = VGG([[8], [12]])
    student, x = student_of(model)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.3 * torch.randn_like(weight)
    losses: list[float] = []
    how = Learning(12, 8, 0.02, 0.0, views=(), match=match, hints_fade=False, dtype=dtype)
    learn(student, model.requires_grad_(False), x, how, lambda *at: losses.append(at[2]))
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    assert student.folded()(x).isfinite().all()


@pytest.mark.parametrize("hints_fade", [True, False])
def test_what_is_read_inside_counts_less_and_less(hints_fade: bool, monkeypatch: Any) -> None:
    student, x = student_of(VGG([[8], [12]]))
    seen: list[Any] = []

    def note(*given: Any) -> Tensor:
        seen.append(given[5:])
        return mismatch(*given)

    monkeypatch.setattr("branchprune.few_images.learning.mismatch", note)
    learn(student, student.blended.model, x, Learning(5, 8, hints_fade=hints_fade))
    assert {hints for hints, _ in seen} == {frozenset({"features.4"})}
    wanted = [4.0, 3.0, 2.0, 1.0, 0.0] if hints_fade else [5.0] * 5
    assert [hint_weight for _, hint_weight in seen] == pytest.approx(wanted)

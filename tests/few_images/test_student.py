"""The narrow model with a wide head: what it computes is what is folded at the end."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Net, Residual, vgg
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending.blended import Blended
from branchprune.few_images.head import head_layers
from branchprune.few_images.learning import Learning, learn
from branchprune.few_images.start import fitted_start
from branchprune.few_images.student import Student


class TwoHeads(nn.Module):
    """A residual net whose last features are read by a map of classes and by one of boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Residual(8, 12)
        self.classes, self.boxes = nn.Conv2d(12, 3, 1), nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.block(self.stem(x))
        return {"classes": self.classes(features), "boxes": self.boxes(input=features)}


def student_of(model: nn.Module, keep: float = 0.5) -> tuple[Student, Tensor]:
    torch.manual_seed(0)
    model = model.double().eval()
    x = torch.randn(16, 3, 8, 8).double()
    return Student(fitted_start(model, bp.plan(model, x[:2], keep), x)), x


def cut(model: nn.Module, plan: bp.Plan) -> Blended:
    blended = bp.attach(model, plan)
    blended.alpha = 0.0
    return blended


def test_the_head_is_what_makes_the_outputs_of_channels_that_shrink() -> None:
    x = torch.randn(2, 3, 8, 8)
    net, chain = TwoHeads(), vgg()
    last = str(len(chain) - 1)
    assert head_layers(chain, bp.plan(chain, x)) == {last: last}
    assert head_layers(net, bp.plan(net, x)) == {"classes": "classes", "boxes": "classes"}
    whole = bp.plan(net, x, keep={"stem": 0.5}, exclude=["block.conv2"])
    assert head_layers(net, whole) == {}
    assert Student(cut(chain, bp.plan(chain, x))).covers
    assert Student(cut(net, bp.plan(net, x))).covers
    assert not Student(cut(net, whole)).covers


def test_an_output_that_mixes_channels_does_not_follow_from_the_head() -> None:
    net = Net(
        lambda m, x: (m.d((y := m.a(x).relu()).mean((2, 3))), m.b(y).amax(1).flatten(1)),
        **dict(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), d=nn.Linear(8, 5)),
    )
    student = Student(cut(net, bp.plan(net, torch.randn(2, 3, 8, 8))))
    assert {*student.head} == {"d"} and not student.covers


@pytest.mark.parametrize("make", [vgg, TwoHeads])
def test_what_it_has_learnt_is_folded_exactly(make: type[nn.Module]) -> None:
    student, x = student_of(make())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    student.model.eval()
    small = student.folded().eval()
    wanted, found = student.model(x), small(x)
    for key in wanted if isinstance(wanted, dict) else [slice(None)]:
        torch.testing.assert_close(found[key], wanted[key], atol=1e-12, rtol=1e-10)
    assert {*small.state_dict()} == {*make().state_dict()}


def test_its_head_stays_and_a_copy_learns_on_its_own() -> None:
    student, x = student_of(vgg())
    other = copy.deepcopy(student)
    before = student.model.eval()(x)
    assert all(not p.requires_grad for p in student.model[-1].parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert torch.equal(student.model(x), before)
    assert not torch.equal(other.model.eval()(x), before)


def test_a_frozen_model_learns_and_is_frozen_again() -> None:
    student, _ = student_of(vgg().requires_grad_(False))
    trained = student.parameters()
    assert trained and all(parameter.requires_grad for parameter in trained)
    assert not any(parameter.requires_grad for parameter in student.folded().parameters())


def test_what_alone_is_frozen_stays_but_layers_learn() -> None:
    model = Net(
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)) * m.scale + m.shift,
        **{name: nn.Conv2d(n, 6, 1) for name, n in (("a", 3), ("b", 6), ("c", 6))},
        scale=nn.Parameter(torch.full((6,), 2.0), requires_grad=False),
        shift=nn.Parameter(torch.ones(6)),
    )
    model.get_submodule("b").requires_grad_(False)
    student, x = student_of(model)
    before = {name: weight.clone() for name, weight in student.folded().named_parameters()}
    learn(student, student.blended.model, x, Learning(3, 8, match="outputs"))
    after = student.folded().named_parameters()
    moved = {name for name, weight in after if not torch.equal(weight, before[name])}
    assert "scale" not in moved and {"shift", "a.weight", "b.weight", "b.bias"} <= moved

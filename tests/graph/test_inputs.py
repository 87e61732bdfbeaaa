"""Examples: which numbers stay, and which are replaced by noise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import branchprune as bp
from branchprune.graph.inputs import copied, tensors, without_constants


@pytest.mark.parametrize(
    "constant", [torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), -2.5), torch.tensor([4.0])]
)
def test_constant_floats_become_the_same_noise_in_every_call(constant: Tensor) -> None:
    first, again = (without_constants({"x": constant}) for _ in range(2))
    assert isinstance(first, dict) and isinstance(again, dict)
    assert first["x"].shape == constant.shape and first["x"].dtype == constant.dtype
    assert len(first["x"].unique()) == constant.numel()
    assert not torch.equal(first["x"], constant) and torch.equal(first["x"], again["x"])


@pytest.mark.parametrize("given", [torch.tensor([1.0, 2.0]), torch.ones(3, dtype=torch.int64)])
def test_other_tensors_stay(given: Tensor) -> None:
    kept, flag = without_constants((given, True))
    assert torch.equal(kept, given) and flag is True


class Uncopied(nn.Module):
    """A part that deepcopy returns itself, as some keep a frozen encoder from being copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def __deepcopy__(self, memo: dict[int, object]) -> Uncopied:
        return self

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_a_module_that_is_not_copied_is_refused_before_it_is_changed() -> None:
    model = nn.Sequential(Uncopied(), nn.Conv2d(8, 4, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(bp.PruneError, match=r"0 \(a Uncopied\) is not copied by deepcopy"):
        bp.plan(model, torch.randn(2, 3, 8, 8))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("sharing", [False, True])
def test_a_copy_holds_nothing_that_the_model_holds(sharing: bool) -> None:
    """Not even the empty dictionaries of hooks, which would be those of both."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
    model.kept = model.alias = {}  # type: ignore[assignment]
    made = copied(model, sharing)
    for old, new in zip(model.modules(), made.modules(), strict=True):
        for name, value in vars(old).items():
            if isinstance(value, dict | set | list):
                found = vars(new)[name]
                assert type(found) is type(value) and len(found) == len(value)
                assert found is not value, name
    assert vars(made)["kept"] is vars(made)["alias"]
    made.register_forward_hook(lambda *_: None)
    assert made._forward_hooks and not model._forward_hooks


@dataclass
class Scores:
    """What some libraries return in place of a tuple."""

    scores: Tensor
    hidden: tuple[Tensor, ...] = ()


def test_tensors_are_found_in_dataclasses_and_what_they_hold() -> None:
    first, second, third = torch.randn(3, 2)
    outputs = {"a": Scores(first, (second,)), "b": [Scores, third]}
    assert list(map(id, tensors(outputs))) == [id(first), id(second), id(third)]

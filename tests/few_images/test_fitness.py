"""Images that a model was not trained with are told before anything is learnt from them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from branchprune.few_images.fitness import warn_if_strange


@pytest.fixture
def model() -> nn.Module:
    """A net whose norm has seen images of mean 0, and which is sure of its class."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    for _ in range(60):
        net(torch.randn(32, 3, 6, 6))
    net[-1].weight.data *= 20
    return net.eval()


def test_images_as_in_training_say_nothing(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_strange(model, torch.randn(32, 3, 6, 6)) == ()


def test_images_that_are_not_normalised_are_told(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="images are not what 1 has seen: its inputs are off by"):
        (said,) = warn_if_strange(model, 3 + torch.randn(32, 3, 6, 6))
    assert said.startswith("images are not what 1 has seen")


@pytest.mark.parametrize(("scale", "said"), [(0.25, r"0\.2\d"), (4.0, "[34]")])
def test_images_that_are_not_divided_by_their_deviation_are_told(
    model: nn.Module, scale: float, said: str
) -> None:
    with pytest.warns(UserWarning, match=rf"images are not what 1 has seen: .* vary {said}"):
        warn_if_strange(model, scale * torch.randn(256, 3, 6, 6))


def test_a_norm_that_has_seen_nothing_does_not_judge(model: nn.Module) -> None:
    model[1].reset_running_stats()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_strange(model, 0.5 * torch.randn(32, 3, 6, 6))


def test_a_model_that_is_at_chance_is_told(model: nn.Module) -> None:
    model[-1].weight.data *= 0.001
    with pytest.warns(
        UserWarning, match=r"a probability of 2\d\.\d\d% on average, at chance .* 20"
    ):
        warn_if_strange(model, torch.randn(32, 3, 6, 6))


def test_outputs_that_are_shares_already_are_taken_as_such() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 50), nn.Softmax(1))
    model[1].weight.data *= 0
    model[1].bias.data = 3.0 * torch.eye(50)[0]  # a share of 0.29: far from chance, which is 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_strange(model, torch.randn(8, 1, 2, 2))


def test_models_without_norms_or_classes_are_not_judged() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_strange(nn.Conv2d(3, 2, 3), torch.randn(4, 3, 6, 6))

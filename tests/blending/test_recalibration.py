"""The branch alone with BatchNorm statistics of its own, against torch's update_bn on a copy."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import branchprune as bp
from branchprune.blending.bn_recalibration import recalibrated


@pytest.fixture
def blended():
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
    )
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 2, 6, 6)))
    blended.alpha = 0.5
    for _ in range(3):
        blended(torch.randn(8, 2, 6, 6))
    return blended.eval()


def batches(n=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, generator=generator) for _ in range(n)]


def test_statistics_are_those_of_the_branch(blended):
    x = torch.randn(4, 2, 6, 6)
    blended.model[3].p = 0.0
    copied = copy.deepcopy(blended)
    copied.alpha = 0
    update_bn(batches(), copied)
    with blended.branch_only(batches()):
        found = blended(x)
    assert torch.equal(found, copied.eval()(x))


def test_nothing_is_left_behind(blended):
    state = copy.deepcopy(blended.state_dict())
    modes = [module.training for module in blended.modules()]
    x, random = torch.randn(4, 2, 6, 6), torch.get_rng_state()
    before = blended(x)
    with blended.branch_only(iter(batches())):
        assert set(blended.alpha.values()) == {0.0}
        assert not torch.equal(blended(x), before)
    assert torch.equal(blended(x), before)
    assert all(torch.equal(v, state[k]) for k, v in blended.state_dict().items())
    assert [module.training for module in blended.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert set(blended.alpha.values()) == {0.5}


def broken():
    yield batches()[0]
    raise OSError("worker died")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (broken(), pytest.raises(OSError, match="worker")),
        (torch.randn(2, 2, 6, 6), pytest.raises(bp.PruneError, match="several inputs")),
        (
            [(torch.randn(2, 2, 6, 6), torch.ones(2))],
            pytest.raises(bp.PruneError, match=r"batch\[0\] for batch"),
        ),
        ([torch.randn(2, 5, 6, 6)], pytest.raises(bp.PruneError, match="inputs of forward")),
        ([], contextlib.nullcontext()),
        (batches(), contextlib.nullcontext()),
    ],
)
def test_alpha_and_statistics_are_restored_even_after_a_failure(blended, inputs, error):
    blended.model[1].momentum = 0.3
    state = copy.deepcopy(blended.state_dict())
    momenta = [m.momentum for m in blended.modules() if isinstance(m, nn.BatchNorm2d)]
    with error, blended.branch_only(inputs):
        pass
    assert set(blended.alpha.values()) == {0.5}
    assert all(torch.equal(v, state[k]) for k, v in blended.state_dict().items())
    assert [m.momentum for m in blended.modules() if isinstance(m, nn.BatchNorm2d)] == momenta


def test_one_image_is_too_few_for_a_norm_behind_pooling():
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten()),
        nn.Linear(8, 3),
    )
    blended = bp.attach(model, bp.plan(model, torch.randn(2, 2, 6, 6)))
    blended.alpha = 0.5
    expected = pytest.raises(bp.PruneError, match=r"batches .* more than 1 value per channel")
    with expected, blended.branch_only([torch.randn(1, 2, 6, 6)]):
        pass
    assert {m.momentum for m in blended.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_at_alpha_0_the_inputs_are_not_used(blended):
    blended.alpha = 0
    with blended.branch_only(broken()):
        pass


def test_groups_whose_turn_has_not_come_stay(blended):
    first, second = blended.alpha
    blended.alpha = {first: 0.5, second: 1.0}
    with blended.branch_only():
        assert blended.alpha == {first: 0.0, second: 1.0}
    assert blended.alpha == {first: 0.5, second: 1.0}


class Counts(nn.Module):
    """Puts another tensor in the place of a buffer in every call."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.norm(x)


def test_buffers_that_forward_replaces_are_what_they_were():
    model = Counts()
    calls = model.calls
    with recalibrated(model, [((x,), {}) for x in batches()]):
        assert model.calls == 3
    assert model.calls is calls and calls == 0

"""α has one truth, its buffer: a pass computes what that says, however it was written."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from models import scramble
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import branchprune as bp
from branchprune.blending.alpha_buffer import AlphaBuffer

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def blended_network() -> bp.Blended:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model = scramble(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval())
    return scramble(bp.attach(model, bp.plan(model, X)), seed=3)


def spelled_out(blended: bp.Blended, alphas: Tensor, x: Tensor) -> Tensor:
    """Compute both paths and their weighted sums with explicit matrices, in evaluation mode."""
    net = blended.model
    reduce, expand = (dict(ends.named_children()) for ends in (blended.reduce, blended.expand))
    first, second = alphas

    def mapped(end: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", end.weights[0], x)

    z = net[0](x)
    norm = blended.twin.get_submodule("1")
    wide, narrow = net[1](z).relu(), norm(mapped(reduce["0"], z)).relu()
    y = net[3](first * wide + (1 - first) * mapped(expand["3"], narrow))
    both = second * y.relu() + (1 - second) * mapped(expand["5"], mapped(reduce["3"], y).relu())
    out: Tensor = net[5](both)
    return out


def load(blended: bp.Blended, new: Tensor) -> None:
    blended.load_state_dict(blended.state_dict() | {"alphas": new})


def load_by_hand(blended: bp.Blended, new: Tensor) -> None:
    blended.state_dict()["alphas"].copy_(new)


def assign(blended: bp.Blended, new: Tensor) -> None:
    blended.alphas = new.clone()


def write_data(blended: bp.Blended, new: Tensor) -> None:
    blended.alphas.data.copy_(new)


def write_without_gradient_or_version(blended: bp.Blended, new: Tensor) -> None:
    with torch.inference_mode():
        blended.alphas.copy_(new)


def write_one_by_one(blended: bp.Blended, new: Tensor) -> None:
    for i, value in enumerate(new):
        blended.alphas[i] = value


def interpolate(blended: bp.Blended, new: Tensor) -> None:
    blended.alphas.lerp_(new, 1.0)


def exchange_data(blended: bp.Blended, new: Tensor) -> None:
    blended.alphas.data = new.clone()


WRITERS = [
    *(load, load_by_hand, assign, write_data, write_without_gradient_or_version),
    *(write_one_by_one, interpolate, exchange_data),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("duplicate", [False, True])
def test_a_pass_follows_the_buffer(write, duplicate):
    blended = blended_network()
    blended = copy.deepcopy(blended) if duplicate else blended
    for new in ([0.0, 1.0], [0.25, 0.0], [1.0, 0.5], [0.0, 0.0], [1.0, 1.0]):
        write(blended, torch.tensor(new))
        expected = spelled_out(blended, torch.tensor(new), X)
        torch.testing.assert_close(blended(X), expected, rtol=1e-4, atol=1e-5)
        assert list(blended.alpha.values()) == new and str(blended.alpha["0"]) in repr(blended)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averages_evaluate_at_the_alpha_of_their_buffer(use_buffers):
    blended = blended_network()
    average = AveragedModel(
        blended, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    expected = torch.ones(2)
    for alpha in (1.0, 0.5, 0.25, 0.0):
        blended.alpha = alpha
        average.update_parameters(blended)
        expected = expected.lerp(torch.full((2,), alpha), 0.5) if use_buffers else blended.alphas
        expected = torch.ones(2) if alpha == 1 else expected
        found = average.eval()(X)
        torch.testing.assert_close(average.module.alphas, expected)
        torch.testing.assert_close(
            found, spelled_out(average.module, expected, X), rtol=1e-4, atol=1e-5
        )


def test_alpha_is_read_as_it_was_set_and_collapse_asks_the_buffer():
    blended = blended_network()
    blended.alpha = 1 / 3
    for net in (blended, copy.deepcopy(blended)):
        assert list(net.alpha.values()) == [1 / 3] * 2
    blended.alphas.lerp_(torch.full((2,), 0.7), 1.0)
    assert list(blended.alpha.values()) == [0.7] * 2
    blended.alpha = {"3": 0.0}
    assert blended.alpha == {"0": 0.7, "3": 0.0}
    with pytest.raises(bp.PruneError, match=r"alpha of 0 is 0\.7"):
        bp.collapse(blended)
    blended.alphas.data.zero_()
    torch.testing.assert_close(bp.collapse(blended)(X), blended(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_a_buffer_that_holds_no_alpha_is_refused_until_it_is_set(value):
    blended = blended_network()
    blended.alphas[1] = value
    with pytest.raises(bp.PruneError, match=rf"alphas` holds {value} for the group 3"):
        blended(X)
    blended.alpha = 0.5
    blended(X)
    blended.alphas.fill_(1 + 1e-7)
    assert blended.alpha["0"] == 1.0


def test_numbers_without_values_leave_alpha_as_it_was():
    blended = blended_network()
    blended.alpha = 0.0
    buffers = dict(blended.named_buffers())
    stacked = {n: torch.stack([b, b]) for n, b in buffers.items()}
    parameters = {n: torch.stack([p, p]) for n, p in blended.named_parameters()}

    def call(parameters, buffers):
        return torch.func.functional_call(blended, (parameters, buffers), (X,))

    found = torch.vmap(call)(parameters, stacked)
    torch.testing.assert_close(found[1], blended(X), rtol=1e-4, atol=1e-5)
    blended.alpha = 0.5
    blended.to("meta")
    assert blended(X.to("meta")).device.type == "meta" and blended.alpha["0"] == 0.5


class OnGPU:
    """What is asked of a buffer on a GPU; counts how often its numbers are waited for."""

    def __init__(self, values: list[float]) -> None:
        self.values, self._version, self.waits = values, 0, 0
        self.device, self.dtype = types.SimpleNamespace(type="cuda"), torch.float32

    def is_inference(self) -> bool:
        return False

    def tolist(self) -> list[float]:
        self.waits += 1
        return list(self.values)


def test_steps_of_a_training_do_not_wait_for_a_gpu():
    buffer, reader = OnGPU([1.0]), AlphaBuffer((1.0,))

    def read(training: bool) -> float:
        return reader.read(buffer, training, lambda: ["conv"])[0]  # type: ignore[arg-type]

    read(True)
    assert all(read(True) == 1.0 for _ in range(9)) and buffer.waits == 1
    buffer.values, buffer._version = [0.5], 1  # any write but one by `.data`
    assert read(True) == read(True) == 0.5 and buffer.waits == 2
    buffer.values = [0.25]  # by `.data`
    assert read(False) == 0.25 and buffer.waits == 3
    buffer.values = [0.0]
    assert read(False) == 0.0 and buffer.waits == 4
    buffer.values = [0.75]
    assert read(True) == read(True) == 0.75 and buffer.waits == 5

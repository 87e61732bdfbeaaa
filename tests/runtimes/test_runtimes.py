"""Models in each runtime compute what they compute in PyTorch."""

import re
from collections.abc import Mapping
from itertools import chain

import pytest
import torch
from torch import nn

import branchprune as bp
from branchprune.runtimes.runtime import needed

RUNTIMES = {
    "pytorch": bp.PyTorch,
    "onnx": bp.OnnxRuntime,
    "openvino": bp.OpenVino,
    "executorch": bp.ExecuTorch,
}
ROUNDED = {"openvino": 2e-2}  # computes in bfloat16 where the processor has units for it
VOLUME = (1, 2, 5, 5, 5)
LAYERS = [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9)),
    (nn.Conv2d(6, 6, 3, groups=6, bias=False), (1, 6, 9, 9)),
    (nn.Conv2d(6, 9, (1, 3), groups=3, dilation=(1, 2), padding=(0, 1)), (1, 6, 9, 9)),
    (nn.Conv1d(6, 4, 5, padding=2), (2, 6, 11)),
    (nn.Conv3d(2, 4, 3), VOLUME),
    (nn.ConvTranspose2d(6, 4, 4, 2, 1), (1, 6, 5, 5)),
    (nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2, bias=False), (1, 6, 5, 5)),
    (nn.Linear(6, 4), (3, 6)),
    (nn.Linear(6, 4, bias=False), (3, 6)),
    (nn.Linear(6, 4), (2, 3, 6)),
    (nn.Linear(6, 4, bias=False), (2, 3, 6)),
    (nn.Conv2d(6, 8, 3, padding="same"), (2, 6, 9, 9)),  # by torch's exporter
]


class Beside(nn.Module):
    """Layers beside one another, since ExecuTorch takes a second for each file."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *images):
        return tuple(layer(x) for layer, x in zip(self.layers, images, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_layer_computes_the_same(runtime):
    known = [each for each in LAYERS if runtime != "executorch" or each[1] != VOLUME]
    layers, xs = [layer for layer, _ in known], [torch.randn(shape) for _, shape in known]
    made = RUNTIMES[runtime](threads=1)
    if runtime == "executorch":
        found = outputs(made.prepared(Beside(layers), tuple(xs))())
    else:
        each = (made.prepared(layer, x)() for layer, x in zip(layers, xs, strict=True))
        found = [*chain(*map(outputs, each))]
    for layer, x, y in zip(layers, xs, found, strict=True):
        error = (y - layer(x).detach()).abs().max() / layer(x).abs().max()
        assert error < ROUNDED.get(runtime, 1e-5), layer


def test_what_executorch_cannot_run_is_named():
    [layer] = [layer for layer, shape in LAYERS if shape == VOLUME]
    with pytest.raises(bp.PruneError, match=r"cannot run Conv3d: .* 3-D or 4-D, but got, 5"):
        bp.ExecuTorch(threads=1).prepared(layer, torch.randn(VOLUME))


def outputs(found):
    found = [found] if isinstance(found, torch.Tensor) else found
    found = [*found.values()] if isinstance(found, Mapping) else found
    return [each if isinstance(each, torch.Tensor) else torch.from_numpy(each) for each in found]


class Two(nn.Module):
    """Two inputs, one of them by name, a norm that trains, and two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x, scale):
        y = self.norm(self.a(x)).relu() * scale
        return y, self.b(y.mean((2, 3)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_computes_what_it_does_in_evaluation_and_stays_as_it_is(runtime):
    model = Two().train()
    model(torch.randn(4, 3, 8, 8), torch.ones(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = {"x": torch.randn(2, 3, 8, 8), "scale": torch.full((1,), 2.0)}
    step = RUNTIMES[runtime](threads=1).prepared(model, example)
    found = outputs(step())
    assert model.training and model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wanted = model.eval()(**example)
    for one, other in zip(found, wanted, strict=True):
        error = (one - other.detach()).abs().max() / other.abs().max()
        assert error < ROUNDED.get(runtime, 1e-5)


class InPlace(nn.Module):
    """Changes its input and a buffer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.a(x.mul_(2))


def test_what_works_in_place_changes_neither_model_nor_example_and_computes_the_same_again():
    model, x = InPlace(), torch.ones(2, 3)
    step = bp.PyTorch(threads=1).prepared(model, x)
    first, second = step(), step()
    assert torch.equal(first, second) and torch.equal(first, model.a(2 * x))
    assert torch.equal(x, torch.ones(2, 3)) and model.calls == 0


def test_pytorch_uses_so_many_threads_while_it_runs():
    seen = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    bp.PyTorch(threads=2).prepared(model, torch.zeros(1, 2))()
    assert {*seen} == {2} and torch.get_num_threads() == before


def test_what_cannot_be_exported_is_named():
    class Own(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else x.unique()

    with pytest.raises(bp.PruneError, match="Own cannot be exported to ONNX"):
        bp.OnnxRuntime(threads=1).prepared(Own(), torch.zeros(3))


def test_other_types_than_float32_are_refused():
    with pytest.raises(bp.PruneError, match=r"parameters of torch\.float64"):
        bp.OnnxRuntime(threads=1).prepared(nn.Linear(2, 2).double(), torch.zeros(1, 2).double())


def test_threads_of_executorch_stay_while_something_is_open():
    model, x = nn.Linear(3, 2), torch.ones(2, 3)
    step = bp.ExecuTorch(threads=1).prepared(model, x)
    (found,) = step()
    assert torch.allclose(found, model(x), rtol=0, atol=1e-6)
    with pytest.raises(bp.PruneError, match=re.escape("threads (=2): what is open in ExecuTorch")):
        bp.ExecuTorch(threads=2).prepared(model, x)
    assert bp.ExecuTorch().threads == 1
    del step
    bp.ExecuTorch(threads=2).prepared(model, x)
    assert bp.ExecuTorch().threads == 2


def test_threads_are_checked():
    with pytest.raises(bp.PruneError, match=re.escape("threads (=0)")):
        bp.PyTorch(threads=0)


def test_a_missing_package_names_its_extra():
    with pytest.raises(bp.PruneError, match=re.escape("pip install 'branchprune[openvino]'")):
        needed("no_such_package", "OpenVino", "openvino")

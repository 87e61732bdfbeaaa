"""The generated forward code: what layers with further arguments read."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Net, relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp
from branchprune.blending import codegen


class UpTo(nn.Module):
    """A transposed convolution that is told the size of a tensor that shrinks, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x).relu()
        y = self.up(self.down(skip).relu(), output_size=skip.shape[2:])
        out: Tensor = self.head(y.relu() + skip)
        return out


@pytest.mark.parametrize("side", [32, 31])
def test_the_size_of_an_output_follows_another_tensor(side: int) -> None:
    """32 and 31 are both halved to 16: only the argument says what 16 comes from."""
    model = scramble(UpTo().double().eval())
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended)
    blended.alpha = 0
    expected = spelled_out_with_size(blended, x)
    small = bp.collapse(blended)
    assert small.up.out_channels == 4 and expected.shape[2:] == (side, side)
    assert relative(expected, small(x)) < 1e-12
    assert relative(expected, blended(x)) < 1e-12
    blended.alpha = 0.5
    assert blended(x).shape == expected.shape


def spelled_out_with_size(blended: bp.Blended, x: Tensor) -> Tensor:
    """Compute the branch with the linear ends as explicit matrices."""
    net, reduce, expand = blended.model, blended.reduce, blended.expand

    def mapped(end: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", end.weights[0], x)

    skip = mapped(reduce.a, net.a(x)).relu()
    low = mapped(reduce.down, net.down(mapped(expand.down, skip))).relu()
    wide = net.up(mapped(expand.up, low), output_size=x.shape[2:])
    up = mapped(reduce.up, wide).relu()
    return net.head(mapped(expand.head, up + skip))


def everywhere(name: str) -> nn.Module:
    """A network in which every kind of layer, and a parameter, has one name on its path."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Conv2d(3, 8, 3), "norm": nn.Module()})
            self.parts["norm"].add_module(name, nn.BatchNorm2d(8))
            self.parts["norm"].register_parameter("scale", nn.Parameter(torch.rand(1, 8, 1, 1)))
            self.add_module(name, nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3)))
            self.get_submodule(name).register_parameter("gain", nn.Parameter(torch.rand(8, 1, 1)))
            self.head = nn.ModuleDict({name: nn.Conv2d(8, 2, 1)})

        def forward(self, x: Tensor) -> Tensor:
            parts, own = self.parts, self.get_submodule(name)
            x = parts["norm"].get_submodule(name)(parts[name](x)) * parts["norm"].scale
            x = own(x) * own.gain
            out: Tensor = self.head[name](x.relu())
            return out

    torch.manual_seed(0)
    return Named()


KEYWORDS = ["in", "class", "None", "lambda"]
OWN = [
    "alphas",
    "model",
    "twin",
    "plain",
    "constants",
    "reduce",
    "expand",
    "torch",
    "matching_loss",
]
ODD = ["1x1", "a b", "a-b", "\ufb01", "\u540d", "__x", "match", "getattr", "relu", "inf", "device"]


@pytest.mark.parametrize("name", [*KEYWORDS, *OWN, *ODD])
def test_modules_may_have_any_name(name: str) -> None:
    model = scramble(everywhere(name).double().eval())
    plain = scramble(everywhere("ordinary").double().eval())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    outputs = []
    for net in (model, plain):
        blended = bp.attach(net, bp.plan(net, x), mixing="group", matching=0.1)
        scramble(blended, seed=3)
        for alpha in (0.5, 0.0):
            blended.alpha = alpha
            outputs.append(blended(x).detach())
        outputs.append(bp.collapse(blended)(x).detach())
        blended.train().alpha = 0.5
        blended(x).sum().backward()
    half, zero, small, *others = outputs
    assert relative(zero, small) < 1e-12
    for found, expected in zip((half, zero), others, strict=False):
        assert relative(expected, found) < 1e-12


def parts(m: Net, x: Tensor) -> tuple[Tensor, ...]:
    y = m.norm(m.a(x))
    first, rest = y[:, :4], y[:, 4:]
    return m.first(first), m.rest(rest.relu()), first.softmax(1)


def test_channels_that_stay_pass_the_norm_of_those_that_shrink() -> None:
    """The small model has one norm for both: what reads those alone blends them, too."""
    layers = {"first": nn.Conv2d(4, 2, 3), "rest": nn.Conv2d(8, 2, 3)}
    model = Net(parts, a=nn.Conv2d(3, 12, 1), norm=nn.BatchNorm2d(12), **layers)
    model = scramble(model.double().eval())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended)
    blended.alpha = 0.0
    expected = spelled_out(blended)(x)
    small = bp.collapse(blended)
    for found in (blended(x), small(x)):
        assert all(relative(a, b) < 1e-12 for a, b in zip(expected, found, strict=True))
    blended.alpha = 0.25
    mixed = 0.25 * blended.model(x)[0] + 0.75 * expected[0]
    assert relative(mixed, blended(x)[0]) < 1e-12
    for mixing in ("group", "step", "sample"):
        blended.mixing = mixing
        found = blended.train()(x)[0]
        assert found.isfinite().all() and found.shape == mixed.shape


def test_a_program_is_written_once_for_all_copies_and_each_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code of their own, since torch.compile keeps what it compiles with that."""
    model, x = scramble(UpTo().double()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = bp.plan(model, x)
    blended = bp.attach(model, plan)
    written = []
    write = codegen.ProgramWriter.write
    monkeypatch.setattr(codegen.ProgramWriter, "write", lambda w: (written.append(w), write(w))[1])
    others = [copy.deepcopy(blended), bp.attach(model, plan)]
    assert not written
    for training in (False, True):
        programs = [each.program(training) for each in (blended, *others)]
        assert len({program.__code__ for program in programs}) == 1  # equal, and yet
        assert len({id(program.__code__) for program in programs}) == len(programs)
    scramble(others[0], seed=4)
    others[0].alpha = 0.5
    assert len(written) == 2
    assert not torch.equal(others[0].eval()(x), blended.eval()(x))
    assert torch.equal(others[1].eval()(x), blended(x))
    bp.attach(model, bp.plan(model, x))  # a plan of its own has a structure of its own
    assert len(written) > 2

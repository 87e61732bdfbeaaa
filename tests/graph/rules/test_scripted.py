"""Functions and modules compiled by `torch.jit`, into which no trace sees."""

import pytest
import torch
from models import relative, scramble
from torch import nn
from torch.fx import _symbolic_trace

import branchprune as bp
from branchprune.graph.rules.teach import TAUGHT

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")


def plainly(x):
    return x * x.sigmoid()


activation = plainly


@pytest.fixture
def taught(monkeypatch):
    """Teach a function for one test."""

    def teach(function):
        monkeypatch.setitem(TAUGHT, function, None)
        bp.teach(function, bp.rules.same)
        monkeypatch.setitem(globals(), "activation", function)

    return teach


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        return self.b(activation(self.a(x)))


def check_exact(model, **options):
    """Return the small model, compared with the branch alone."""
    model = scramble(model.eval())
    blended = bp.attach(model, bp.plan(model, X, **options))
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        assert relative(blended(X), small(X)) < 1e-5
    return small


def wrapped():
    """Return what every trace of torch.fx replaces, outside of torch."""
    known = _symbolic_trace._wrapped_fns_to_patch.items()
    return {key for key, scope in known if not scope.get("__name__", "").startswith("torch")}


@pytest.mark.parametrize("scripted", [True, False])
def test_a_taught_function_changes_nothing_for_other_models(taught, scripted):
    taught(torch.jit.script(plainly) if scripted else plainly)
    before = wrapped()
    assert check_exact(Net()).a.out_channels == 16
    assert wrapped() == before
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert check_exact(plain)[0].out_channels == 4


def test_what_cannot_be_taught_is_refused_and_changes_nothing():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    before = dict(TAUGHT)
    with pytest.raises(bp.PruneError, match="operation"):
        bp.teach(Unhashable(), bp.rules.same)
    assert before == TAUGHT


class Around(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.before, self.after = made(nn.Conv2d(3, 5, 3), 3), made(nn.BatchNorm2d(4), 4)
        self.a, self.b = nn.Conv2d(5, 32, 3), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        return self.after(self.b(self.a(self.before(x)).relu()))


def scripted(part, _):
    return torch.jit.script(part)


def traced(part, channels):
    return torch.jit.trace(part.eval(), X.repeat(1, 2, 1, 1)[:, :channels])


@pytest.mark.parametrize("made", [scripted, traced])
@pytest.mark.parametrize("opaque", [(), ("before", "after")])
def test_a_scripted_part_stays_and_the_rest_is_pruned(made, opaque):
    model = Around(made)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    bp.plan(model, X, opaque=opaque)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    small = check_exact(model, opaque=opaque)
    assert small.a.out_channels == 16
    weight = small.before.weight
    assert weight.is_leaf and weight.requires_grad and weight.dtype is torch.float32

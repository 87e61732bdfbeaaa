"""A blended model in the place of the user's own: class, attributes and methods are the model's."""

import copy
import pickle

import pytest
import torch
from models import relative, scramble
from torch import nn

import branchprune as bp

X, Y = torch.rand(4, 3, 8, 8), torch.rand(4, 4)


class Detector(nn.Module):
    """It has a loss of its own, as trainers of other libraries expect."""

    kind = "detector"

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        )
        self.stride = 32

    @property
    def head(self):
        return self.model[-1]

    def forward(self, x, **options):
        return self.loss(x) if isinstance(x, dict) else self.predict(x, **options)

    def predict(self, x, augment=False, embed=None):
        return self.model(x)

    def loss(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return (self.forward(batch["x"]) - batch["y"]).square().mean()


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Detector()

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def blended():
    torch.manual_seed(0)
    model = Detector().eval()
    return scramble(bp.attach(model, bp.plan(model, X)))


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("training", [False, True])
def test_methods_of_the_class_compute_the_blended_output(blended, alpha, training):
    model = bp.stand_in(blended, "predict").train(training)
    blended.alpha = alpha
    wanted = copy.deepcopy(blended)(X)
    assert torch.equal(copy.deepcopy(model)(X, augment=False, embed=None), wanted)
    assert torch.equal(model({"x": X, "y": Y}), (wanted - Y).square().mean())
    wide = blended.model.train(training)(X)
    assert (relative(wide, wanted) < 1e-6) == (alpha == 1)


def test_it_is_of_the_class_and_trains_the_branch(blended):
    model = bp.stand_in(blended, "predict")
    assert isinstance(model, Detector) and model.kind == "detector" and model.stride == 32
    assert model.head is blended.model.model[-1] and model.training is False
    assert [*model.parameters()] == [*blended.parameters()]
    blended.alpha = 0
    model({"x": X, "y": Y}).backward()
    assert all(
        p.grad is not None for p in [*blended.reduce.parameters(), *blended.twin.parameters()]
    )
    assert model.calls == 1 and not hasattr(blended.model, "calls")
    with pytest.raises(AttributeError, match="no attribute 'strides'"):
        _ = model.strides
    small = bp.collapse(model.blended)
    assert type(small) is Detector and relative(model(X), small(X)) < 1e-5


def test_it_is_copied_pickled_and_converted(blended):
    model = bp.stand_in(blended, "predict")
    blended.alpha = 0.3
    model.names = {0: "circle"}
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and other.names == {0: "circle"}
        assert other.blended is not blended and torch.equal(other(X), model(X))
        other.blended.alpha = 0
        assert blended.alpha == {"model.0": 0.3} and not torch.equal(other(X), model(X))
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(X), model(X))
    assert relative(copy.deepcopy(model).double()(X.double()).float(), model(X)) < 1e-5


def test_what_the_plan_has_not_seen_is_refused(blended):
    model = bp.stand_in(blended, "predict")
    for further in ({"augment": True}, {"embed": [1]}):
        with pytest.raises(bp.PruneError, match="forward is given 2 arguments"):
            model(X, **further)
    with pytest.raises(bp.PruneError, match=r"method \(='infer'\) is no method of Detector"):
        bp.stand_in(blended, "infer")
    whole = Whole()
    part = bp.attach(whole, bp.plan(whole, X, inside="net"))
    with pytest.raises(bp.PruneError, match="only net of Whole was planned"):
        bp.stand_in(part)

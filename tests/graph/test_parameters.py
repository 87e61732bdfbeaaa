"""Parameters and buffers that forward itself reads: they shrink with the channels they are for."""

from __future__ import annotations

import copy
from abc import abstractmethod
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative, scramble, spelled_out
from torch import Tensor, nn

import branchprune as bp

IMAGE = (2, 3, 6, 5)
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Base(nn.Module):
    """Two convolutions, and what a subclass does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def add(self, name: str, *shape: int, buffer: bool = False) -> None:
        value = torch.randn(shape)
        if buffer:
            self.register_buffer(name, value)
        else:
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)).relu())

    @abstractmethod
    def between(self, x: Tensor) -> Tensor:
        """What the parameters do to the tensor between the two layers."""


class Scale3(Base):
    def __init__(self) -> None:
        super().__init__()
        self.add("scale", 8, 1, 1)
        self.add("one")

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale + self.one


class Scale4(Base):
    def __init__(self) -> None:
        super().__init__()
        self.add("scale", 1, 8, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        return x.sigmoid() * self.scale.exp() - self.scale


class Scale1(Base):
    """Layer scale behind LayerNorm, with the channels in the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.add("scale", 8)
        self.norm = nn.LayerNorm(8)

    def between(self, x: Tensor) -> Tensor:
        return (self.norm(x.permute(0, 2, 3, 1)) * self.scale).permute(0, 3, 1, 2)


class PerPlace(Base):
    """A number for each channel and place, at a resolution that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.add("places", 1, 8, 4, 3)

    def between(self, x: Tensor) -> Tensor:
        return torch.add(x, self.places)


class TwoPlaces(Base):
    """One parameter for the outputs of two layers, which it ties together."""

    def __init__(self) -> None:
        super().__init__()
        self.add("scale", 8, 1, 1)
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.c(x * self.scale).tanh() * self.scale


class OfTwoLayers(Base):
    """One parameter over the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(14, 4, 1)
        self.add("scale", 1, 14, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((torch.cat([self.a(x), self.c(x)], 1) * self.scale).relu())


class Frozen(Base):
    """BatchNorm as buffers and arithmetic between them, as in detectors."""

    def __init__(self) -> None:
        super().__init__()
        for name in STATISTICS:
            self.add(name, 8, buffer=True)

    def between(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        variance, mean = (
            self.running_var.reshape(1, -1, 1, 1),
            self.running_mean.reshape(1, -1, 1, 1),
        )
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Functional(Base):
    """The function batch_norm on statistics of one's own."""

    def __init__(self) -> None:
        super().__init__()
        for name in STATISTICS:
            self.add(name, 8, buffer=name.startswith("running"))

    def between(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=0.3,
        )


class Tokens(Base):
    """Patches as a sequence, with a class token and an embedding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.add("token", 1, 1, 8)
        self.add("positions", 1, 13, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        del self.b

    def forward(self, x: Tensor) -> Tensor:
        patches = self.a(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        y = torch.cat([token, patches], dim=1) + self.positions
        y = y + self.mlp(self.norm(y))
        return self.head(y[:, 0])


SHAPES: dict[type[nn.Module], dict[str, tuple[int, ...]]] = {
    Scale3: {"scale": (4, 1, 1), "one": ()},
    Scale4: {"scale": (1, 4, 1, 1)},
    Scale1: {"scale": (4,), "norm.weight": (4,)},
    PerPlace: {"places": (1, 4, 4, 3)},
    TwoPlaces: {"scale": (4, 1, 1), "c.weight": (4, 4, 1, 1)},
    OfTwoLayers: {"scale": (1, 7, 1, 1), "c.weight": (3, 3, 3, 3), "b.weight": (4, 7, 1, 1)},
    Frozen: dict.fromkeys(STATISTICS, (4,)),
    Functional: dict.fromkeys(STATISTICS, (4,)),
    Tokens: {"token": (1, 1, 4), "positions": (1, 13, 4), "mlp.0.weight": (8, 4)},
}
"""The shapes of parameters and buffers when half of the channels are kept."""
Case = pytest.mark.parametrize("kind", SHAPES)


def make(kind: type[nn.Module]) -> nn.Module:
    return scramble(kind().double().eval())


def image(seed: int = 0) -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attached(model: nn.Module, **options: Any) -> bp.Blended:
    return bp.attach(model, bp.plan(model, image()), **options)


def by_other_means(blended: bp.Blended) -> nn.Module:
    """Return the branch as wide layers between matrices, with the twin's own parameters."""
    model = spelled_out(blended)
    twins = {*dict(blended.twin.named_parameters()), *dict(blended.twin.named_buffers())}
    for name in twins & blended.plan.structure.parameters.keys():
        owner, _, last = name.rpartition(".")
        value = attrgetter(name)(blended.twin).detach().clone()
        module = model.get_submodule(owner)
        store = module._parameters if last in module._parameters else module._buffers
        store[last] = nn.Parameter(value) if store is module._parameters else value
    return model


def check_exact(blended: bp.Blended) -> nn.Module:
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        expected = by_other_means(blended)(image(1))
        assert relative(expected, small(image(1))) < 1e-10
        assert relative(expected, blended(image(1))) < 1e-10
        assert relative(expected, blended.model(image(1))) > 1e-3
    return small


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@Case
def test_alpha_1_is_the_model(kind: type[Base]) -> None:
    model = make(kind)
    blended = attached(model)
    assert torch.equal(blended(image(1)), model(image(1)))
    assert torch.equal(blended.train()(image(1)), copy.deepcopy(model).train()(image(1)))


@Case
@pytest.mark.parametrize("init", ["l1", "random"])
def test_collapse_is_exact_and_narrow(kind: type[Base], init: str) -> None:
    model = make(kind)
    small = check_exact(attached(model, init=init))
    assert type(small) is kind and list(small.state_dict()) == list(model.state_dict())
    found = shapes(small)
    assert {name: found[name] for name in SHAPES[kind]} == SHAPES[kind]
    assert found["a.weight"][0] == 4
    for name, parameter in small.named_parameters():
        assert isinstance(model.get_parameter(name), nn.Parameter)
        assert parameter.requires_grad
    buffers = {name for name, _ in model.named_buffers()}
    assert {name for name, _ in small.named_buffers()} == buffers


@Case
def test_costs_are_those_of_the_small_model(kind: type[Base]) -> None:
    model = make(kind)
    blended = attached(model)
    small = check_exact(blended)
    for cost, net in ((blended.plan.before, model), (blended.plan.after, small)):
        assert cost.params == sum(p.numel() for p in net.parameters())


@Case
def test_the_twin_starts_from_the_chosen_channels(kind: type[Base]) -> None:
    chosen = torch.tensor([1, 2, 5, 7])

    def choose(group: bp.GroupWeights) -> Tensor:
        return torch.isin(torch.arange(group.width), chosen).float()

    model = make(kind)
    blended = attached(model, init=choose)
    for name, shape in SHAPES[kind].items():
        if name in blended.plan.structure.parameters:
            wide, narrow = attrgetter(name)(model), attrgetter(name)(blended.twin)
            axis = next(i for i, n in enumerate(shape) if n != wide.shape[i])
            index = torch.cat([chosen, 8 + torch.tensor([1, 2, 5])]) if shape[axis] == 7 else chosen
            assert torch.equal(narrow, wide.index_select(axis, index))
            assert isinstance(narrow, nn.Parameter) == isinstance(wide, nn.Parameter)
            assert narrow.data_ptr() != wide.data_ptr()


@Case
def test_gradients_reach_the_twin(kind: type[Base]) -> None:
    blended = attached(make(kind).train())
    for alpha in (0.5, 0.0):
        blended.alpha = alpha
        blended.zero_grad()
        blended(image(1)).square().sum().backward()
        for name, parameter in blended.twin.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()), name
        for name in SHAPES[kind]:
            wide = attrgetter(name)(blended.model)
            own = name in blended.plan.structure.parameters and isinstance(wide, nn.Parameter)
            if own and alpha == 0:
                assert wide.grad is None


@Case
def test_saved_and_loaded(kind: type[Base], tmp_path: Path) -> None:
    small = check_exact(attached(make(kind)))
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(make(kind), tmp_path / "small.safetensors").eval()
    assert shapes(loaded) == shapes(small)
    assert torch.equal(loaded(image(2)), small(image(2)))


@Case
def test_the_blended_model_is_restored_from_its_state(kind: type[Base]) -> None:
    model = make(kind)
    blended, other = scramble(attached(model), seed=2), attached(model, init="random")
    blended.alpha = 0.25
    other.load_state_dict(blended.state_dict())
    assert torch.equal(other(image(1)), blended(image(1)))


@Case
def test_pruned_again(kind: type[Base]) -> None:
    small = check_exact(attached(make(kind)))
    plan = bp.plan(small, image(), keep=0.5)
    again = check_exact(bp.attach(small, plan))
    assert again.a.out_channels == 2


def test_running_statistics_of_a_function_move_in_both_paths() -> None:
    model = make(Functional)
    blended = attached(model).train()
    blended.alpha = 0.5
    x = image(1)
    wide, narrow = blended.model, blended.twin
    before = {"wide": wide.running_mean.clone(), "narrow": narrow.running_mean.clone()}
    z = blended.model.a(x)
    reduced = blended.reduce.get_submodule("a")(z)
    blended(x)
    for path, store, values in (("wide", wide, z), ("narrow", narrow, reduced)):
        mean = values.mean((0, 2, 3))
        assert relative(0.7 * before[path] + 0.3 * mean, store.running_mean) < 1e-10
    blended.eval()
    blended.alpha = 0
    small = bp.collapse(blended)
    assert torch.equal(small.running_mean, narrow.running_mean)
    with torch.no_grad():
        small.train()(image(2))
    expected = 0.7 * narrow.running_mean + 0.3 * reduced_mean(blended, image(2))
    assert relative(expected, small.running_mean) < 1e-10


def reduced_mean(blended: bp.Blended, x: Tensor) -> Tensor:
    reduced: Tensor = blended.reduce.get_submodule("a")(blended.model.a(x))
    return reduced.detach().mean((0, 2, 3))


def test_groups_that_meet_in_a_parameter_go_together() -> None:
    model = make(OfTwoLayers)
    blended = attached(model)
    blended.alpha = {"a": 0.0, "c": 1.0}
    with pytest.raises(bp.PruneError, match=r"groups a, c meet in scale: bring all to alpha = 0"):
        bp.collapse(blended)
    blended.alpha = 0
    check_exact(blended)


class InARow(Base):
    """Two groups, each with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(8, 6, 1)
        self.b = nn.Conv2d(6, 4, 1)
        self.add("first", 8, 1, 1)
        self.add("second", 6, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.c((x * self.first).relu()) * self.second


def test_one_group_after_the_other() -> None:
    model = make(InARow)
    blended = scramble(attached(model), seed=2)
    blended.alpha = {"a": 0.0, "c": 1.0}
    small = bp.collapse(blended)
    assert small.first.shape == (4, 1, 1) and small.second.shape == (6, 1, 1)
    assert torch.equal(small.second, blended.model.second)
    with torch.no_grad():
        reduced = blended.reduce.get_submodule("a")(blended.model.a(image(1)))
        wide = blended.expand.get_submodule("c")((reduced * blended.twin.first).relu())
        expected = blended.model.b((blended.model.c(wide) * blended.model.second).relu())
        assert relative(expected, small(image(1))) < 1e-10


def test_groups_that_are_tied_by_a_parameter_are_one() -> None:
    plan = bp.plan(make(TwoPlaces), image())
    assert [g.layers for g in plan.groups if g.pruned] == [("a", "c")]


def test_one_of_two_groups_that_meet_in_a_parameter_stays() -> None:
    model = make(OfTwoLayers)
    blended = bp.attach(model, bp.plan(model, image(), exclude=["c"]))
    small = check_exact(blended)
    assert small.scale.shape == (1, 10, 1, 1) and small.c.out_channels == 6
    assert small.b.weight.shape == (4, 10, 1, 1)


class Beside(Base):
    """A parameter next to the channels of a layer, and perhaps a number for each of all."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.b = nn.Conv2d(14, 4, 1)
        self.add("beside", 1, 6, 1, 1)
        self.add("scale", *((14, 1, 1) if scaled else ()))

    def between(self, x: Tensor) -> Tensor:
        beside = self.beside.expand(x.shape[0], -1, x.shape[2], x.shape[3])
        return torch.cat([x, beside], 1) * self.scale


@pytest.mark.parametrize("scaled", [False, True])
def test_a_parameter_beside_the_channels_of_a_layer_stays(scaled: bool) -> None:
    blended = attached(scramble(Beside(scaled).double().eval()))
    reasons = {group.width: group.reason for group in blended.plan.groups}
    assert (
        reasons[8] is None and reasons[6] == "no layer makes these entries of a parameter or buffer"
    )
    small = check_exact(blended)
    assert small.beside.shape == (1, 6, 1, 1) and small.b.in_channels == 10
    assert small.scale.shape == ((10, 1, 1) if scaled else ())


def test_parameters_that_need_no_gradient() -> None:
    model = make(Scale3)
    model.scale.requires_grad_(False)
    blended = attached(model)
    assert not blended.twin.scale.requires_grad
    small = check_exact(blended)
    assert not small.scale.requires_grad and small.a.weight.requires_grad


def test_a_parameter_of_a_frozen_group_stays() -> None:
    model = make(Scale4)
    wrapped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), model).double()
    plan = bp.plan(wrapped, image(), exclude=["3.a"])
    small = check_exact(bp.attach(wrapped, plan))
    assert small[3].scale.shape == (1, 8, 1, 1)
    assert next(g.reason for g in plan.groups if g.name == "3.a") == "3.a is excluded"


class Moves(Base):
    """Statistics that forward itself changes in training."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.add("mean", 8, buffer=True)
        self.register_buffer("count", torch.tensor(0))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            now = x.detach().mean((0, 2, 3))
            if self.how == "in place":
                self.mean.mul_(0.9).add_(0.1 * now)
            elif self.how == "interpolated":
                self.mean.lerp_(now, 0.1)
            elif self.how == "copied":
                self.mean.copy_(0.9 * self.mean + 0.1 * now)
            elif self.how == "counted":
                self.count.add_(1)
            elif self.how == "added":
                self.count += 1
            else:
                self.mean = 0.9 * self.mean + 0.1 * now
        return x - self.mean[:, None, None]


@pytest.mark.parametrize("how", ["in place", "interpolated", "counted", "added", "assigned"])
def test_what_forward_writes_into_a_buffer_is_refused_or_written(how: str) -> None:
    model = scramble(Moves(how).double().eval())
    try:
        blended = attached(model)
    except bp.PruneError:
        return
    reference = copy.deepcopy(model).train()
    reference(image(1))
    blended.train()(image(1))
    assert torch.equal(reference.count, blended.model.count)
    assert torch.equal(reference.mean, blended.model.mean)


def test_a_buffer_that_forward_copies_into_keeps_its_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), Moves("copied"))
    plan = bp.plan(scramble(model.double().eval()), image())
    reason = next(group.reason for group in plan.groups if group.name == "3.a")
    assert reason is not None and "copy_" in reason
    check_exact(bp.attach(model, plan))

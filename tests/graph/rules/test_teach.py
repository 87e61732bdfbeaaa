"""Teaching: what users say of their own modules and functions, and what they are believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import relative, scramble, spelled_out
from torch import Tensor, fx, nn

import branchprune as bp
from branchprune.criteria.group_weights import GroupWeights
from branchprune.graph.rules import teach as taught
from branchprune.rules import Analysis, Layout, same

IMAGE = (2, 3, 8, 8)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Restore what the library knows, since it is the same for all models."""
    yield
    for operation in (*taught.TAUGHT, *taught.TAUGHT_CLASSES, *taught.TAUGHT_METHODS):
        bp.forget(operation)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def around(middle: nn.Module, width: int = 8) -> nn.Sequential:
    """Put a module between two convolutions, behind two whose channels can shrink in any case."""
    return nn.Sequential(
        *(conv(3, 6), nn.ReLU(), conv(6, 3), nn.Tanh()),
        *(conv(3, width), middle, conv(width, 4, 3)),
    )


def reason_of(plan: bp.Plan, name: str) -> str | None:
    return next(group.reason for group in plan.groups if group.name == name)


def check_exact(model: nn.Module, expect: str = "4", **options: Any) -> tuple[bp.Plan, nn.Module]:
    """Plan, attach, change every number and collapse, against the branch by other means."""
    model = scramble(model.double().eval())
    x = torch.randn(IMAGE, dtype=torch.float64)
    plan = bp.plan(model, x, **options)
    blended = bp.attach(model, plan)
    y = torch.randn(IMAGE, dtype=torch.float64)
    assert torch.equal(blended(y), model(y))
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    with torch.no_grad():
        expected = spelled_out(blended)(y)
        assert relative(expected, small(y)) < 1e-10
        assert relative(expected, blended(y)) < 1e-10
        assert relative(expected, model(y)) > 1e-3
    assert plan.groups[0].name == "0" and plan.groups[0].pruned
    return plan, small


class Loops(nn.Module):
    """An activation that no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        positive = [float(image.detach().sum()) > 0 for image in x]
        return torch.stack([y.sigmoid() if p else y for y, p in zip(x, positive, strict=True)])


class PerChannel(nn.Module):
    """A norm with a number of its own a channel, some of them in a child."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)
        self.weight = nn.Parameter(torch.randn(width))
        self.inner = nn.Module()
        self.inner.shift = nn.Parameter(torch.randn(width, 1, 1))
        self.inner.register_buffer("mean", torch.randn(width))
        self.strength = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().max()) < 0:
            return x
        scale = (self.weight * self.strength).view(1, *self.normalized_shape, 1, 1)
        return (x - self.inner.mean[:, None, None]) * scale + self.inner.shift


class Equalised(nn.Module):
    """A convolution of a class of its own, whose weight is scaled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.3, self.bias, padding=1)


class Mixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 1)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1.0, 9).view(1, 8, 1, 1)


class Heads(nn.Module):
    """Something that is not to be looked into, with layers inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        return x + self.inner(x).softmax(1)


def test_what_cannot_be_traced_needs_to_be_taught() -> None:
    with pytest.raises(bp.PruneError, match="cannot be traced in 5 at `positive"):
        bp.plan(around(Loops()), torch.randn(IMAGE))


def test_a_module_that_treats_channels_alike() -> None:
    bp.teach(Loops, bp.rules.same)
    plan, small = check_exact(around(Loops()))
    assert reason_of(plan, "4") is None and small[4].out_channels == 4


def test_subclasses_follow() -> None:
    class Louder(Loops):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    bp.teach(Loops, bp.rules.same)
    assert reason_of(check_exact(around(Louder()))[0], "4") is None


def test_the_closest_class_decides() -> None:
    class Odd(Loops):
        pass

    bp.teach(Loops, bp.rules.same)
    bp.teach(Odd, bp.rules.opaque)
    assert reason_of(check_exact(around(Loops()))[0], "4") is None
    assert reason_of(check_exact(around(Odd()))[0], "4") == "read by 5 (Odd): it is opaque"


def test_a_module_with_numbers_of_its_own_a_channel() -> None:
    bp.teach(PerChannel, bp.rules.channelwise)
    model = around(PerChannel(8))
    plan, small = check_exact(model)
    assert reason_of(plan, "4") is None
    layer = small[5]
    assert layer.normalized_shape == (4,)
    shapes = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    assert shapes == {
        "weight": (4,),
        "strength": (1,),
        "inner.shift": (4, 1, 1),
        "inner.mean": (4,),
    }
    assert model[5].normalized_shape == (8,)


class Gain(nn.Module):
    """A number a channel, multiplied in place if that is asked for."""

    def __init__(self, width: int, inplace: bool) -> None:
        super().__init__()
        self.gain, self.inplace = nn.Parameter(torch.ones(width)), inplace

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.view(-1, 1, 1)
        return x.mul_(gain) if self.inplace else x * gain


@pytest.mark.parametrize("inplace", [True, False])
def test_what_works_in_place_does_so_in_the_collapsed_model(inplace: bool) -> None:
    bp.teach(Gain, bp.rules.channelwise)
    _, small = check_exact(around(Gain(8, inplace)))
    assert small[5].gain.shape == (4,) and small[5].inplace is inplace


def test_the_start_of_what_was_taught_is_that_of_the_chosen_channels() -> None:
    bp.teach(PerChannel, bp.rules.channelwise)
    model = around(PerChannel(8)).double().eval()
    blended = bp.attach(model, bp.plan(model, torch.randn(IMAGE).double(), keep={"4": 0.5}))
    blended.alpha = 0
    best = model[4].weight.detach().flatten(1).abs().sum(1).topk(4).indices.sort().values
    selected = copy.deepcopy(model)
    with torch.no_grad():
        dropped = [i for i in range(8) if i not in best]
        selected[6].weight[:, dropped] = 0
    y = torch.randn(IMAGE).double()
    assert relative(selected(y), blended(y)) < 1e-12
    assert torch.equal(blended.twin.get_submodule("5").weight, model[5].weight[best])


def test_a_criterion_is_given_norms_without_the_slopes_of_activations() -> None:
    seen: dict[str, tuple[Tensor, ...]] = {}

    def score(group: GroupWeights) -> Tensor:
        seen[group.name] = group.norms
        return torch.arange(group.width)

    bp.teach(PerChannel, bp.rules.channelwise)
    model = around(nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8), PerChannel(8)))
    bp.attach(model, bp.plan(model, torch.randn(IMAGE)), init=score)
    norm, _, own = model[5]
    assert [w.tolist() for w in seen["4"]] == [norm.weight.tolist(), own.weight.tolist()]


def test_a_convolution_of_ones_own() -> None:
    bp.teach(Equalised, bp.rules.linear)
    plan, small = check_exact(around(nn.Sequential(Equalised(8, 10), nn.ReLU(), conv(10, 8))))
    assert reason_of(plan, "4") is reason_of(plan, "5.0") is None
    assert small[5][0].weight.shape == (5, 4, 3, 3)
    assert (small[5][0].in_channels, small[5][0].out_channels) == (4, 5)


def test_a_convolution_that_is_not_linear_is_not_believed() -> None:
    class Shares(Equalised):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    bp.teach(Equalised, bp.rules.linear)
    plan, small = check_exact(around(nn.Sequential(Shares(8, 10), nn.ReLU(), conv(10, 8))))
    assert "forward of its own" in str(reason_of(plan, "4"))
    assert small[5][0].weight.shape == (10, 8, 3, 3)


def test_saved_and_loaded(tmp_path: Any) -> None:
    bp.teach(PerChannel, bp.rules.channelwise)
    _, small = check_exact(around(PerChannel(8)))
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(around(PerChannel(8)), tmp_path / "small.safetensors").eval()
    y = torch.randn(IMAGE).double()
    assert torch.equal(loaded(y), small(y))


def test_a_module_that_is_not_looked_into() -> None:
    bp.teach(Heads, bp.rules.opaque)
    model = around(Heads(8))
    plan, small = check_exact(model)
    assert reason_of(plan, "4") == "read by 5 (Heads): it is opaque"
    assert small[5].inner.weight.shape == model[5].inner.weight.shape
    assert "5.inner" not in plan.structure.linears


@pytest.mark.parametrize("rule", ["same", "channelwise"])
def test_a_module_that_mixes_channels_is_not_believed(rule: str) -> None:
    bp.teach(Mixes, getattr(bp.rules, rule))
    plan, small = check_exact(around(Mixes()))
    assert reason_of(plan, "4") == "5 (Mixes) does not treat its channels alike"
    assert small[4].out_channels == 8


def test_a_module_whose_channels_differ_is_not_believed() -> None:
    bp.teach(Fixed, bp.rules.same)
    plan, _ = check_exact(around(Fixed()))
    assert reason_of(plan, "4") == "5 (Fixed) does not treat its channels alike"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ChannelShuffle(4), "5 (ChannelShuffle) does not treat its channels alike"),
        (nn.Softsign(), None),
    ],
)
@pytest.mark.parametrize("rule", ["same", "channelwise"])
def test_a_class_of_torch_is_tried_out_too(layer: nn.Module, reason: str | None, rule: str) -> None:
    bp.teach(type(layer), getattr(bp.rules, rule))
    plan, small = check_exact(around(layer))
    assert reason_of(plan, "4") == reason
    assert small[4].out_channels == (8 if reason else 4)


def test_a_layer_of_torch_that_was_taught_is_pruned_as_before() -> None:
    bp.teach(nn.Conv2d, bp.rules.linear)
    bp.teach(nn.BatchNorm2d, bp.rules.norm)
    plan, small = check_exact(around(nn.BatchNorm2d(8)))
    assert reason_of(plan, "4") is None and small[5].num_features == 4


def test_per_channel_numbers_are_not_all_the_same() -> None:
    bp.teach(PerChannel, bp.rules.same)
    plan, small = check_exact(around(PerChannel(8)))
    assert reason_of(plan, "4") == "5 (PerChannel) does not treat its channels alike"
    assert small[4].out_channels == 8


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """A function that no trace can follow."""
    if float(gate.detach().sum()) > 1e9:
        return x
    return x * torch.sigmoid(gate)


def rescaled(x: Tensor) -> Tensor:
    if float(x.detach().sum()) > 1e9:
        return x
    return x / (1 + x.abs())


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 4), conv(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(gated(self.a(x), self.c(x)))


class Rescaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 4), conv(3, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(rescaled(self.a(x))) + self.d(rescaled(self.c(x)))


def behind(model: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 3), nn.Tanh(), model)


def test_a_function_of_two_tensors() -> None:
    with pytest.raises(bp.PruneError, match=r"cannot be traced in 4 at `if float"):
        bp.plan(behind(Gated()), torch.randn(IMAGE))
    bp.teach(gated, bp.rules.elementwise)
    plan, _ = check_exact(behind(Gated()))
    assert next(g.layers for g in plan.groups if g.name == "4.a") == ("4.a", "4.c")
    assert reason_of(plan, "4.a") is None


def test_a_function_of_one_tensor() -> None:
    bp.teach(rescaled, bp.rules.same)
    plan, _ = check_exact(behind(Rescaled()))
    assert reason_of(plan, "4.a") is reason_of(plan, "4.c") is None


def test_a_function_that_is_not_looked_into() -> None:
    bp.teach(gated, bp.rules.opaque)
    plan, _ = check_exact(behind(Gated()))
    for name in ("4.a", "4.c"):
        assert reason_of(plan, name) == "read by `gated` (in 4): it is opaque"


def test_a_rule_of_ones_own() -> None:
    asked: list[fx.Node] = []

    def halves(analysis: Analysis, node: fx.Node) -> Layout | None:
        asked.append(node)
        return same(analysis, node) if analysis.shape(node)[1] > 6 else None

    bp.teach(rescaled, halves)
    plan, _ = check_exact(behind(Rescaled()))
    assert reason_of(plan, "4.a") is None
    assert reason_of(plan, "4.c") == "read by `rescaled` (in 4)"
    assert {node.target for node in asked} == {rescaled}


def test_a_rule_that_calls_unknown() -> None:
    def never(analysis: Any, node: fx.Node) -> Any:
        return analysis.unknown(node, "it was told so")

    bp.teach(nn.ReLU, never)
    x = torch.randn(IMAGE)
    model = nn.Sequential(conv(3, 6), nn.Tanh(), conv(6, 8), nn.ReLU(), conv(8, 3))
    assert reason_of(bp.plan(model, x), "2") == "read by 3 (ReLU): it was told so"


@pytest.mark.parametrize("rule", [None, "same", 3])
def test_a_rule_that_is_none(rule: Any) -> None:
    with pytest.raises(bp.PruneError, match=rf"rule \(={rule!r}\) must be one of bp.rules"):
        bp.teach(Loops, rule)
    assert Loops not in taught.TAUGHT_CLASSES


class Rectified(torch.autograd.Function):
    """A ReLU that hands on every gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Rectifies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Rectified.apply(x)


@pytest.mark.parametrize("operation", [Rectified, Rectified.apply])
def test_an_autograd_function(operation: Any) -> None:
    model, x = around(Rectifies()), torch.randn(IMAGE)
    said = "teach it, if it treats channels alike: `bp.teach(Rectified, bp.rules.same)`"
    assert bp.plan(model, x).groups[2].remedy == said
    bp.teach(operation, same)
    plan, _ = check_exact(model)
    assert reason_of(plan, "4") is None
    bp.forget(operation)
    assert bp.plan(model.float(), x).groups[2].remedy == said


@pytest.mark.parametrize("operation", ["nonsense", "shape", 3, None, Tensor, int, nn.ReLU()])
def test_an_operation_that_is_none(operation: Any) -> None:
    with pytest.raises(bp.PruneError, match=r"operation \(=.*\) must be a class of modules, a f"):
        bp.teach(operation, bp.rules.same)


class Calls(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


METHODS: dict[str, tuple[object, Callable[[Tensor], Tensor]]] = {
    "roll": ("roll", lambda x: x.roll(1, 1)),
    "roll of the class": (torch.Tensor.roll, lambda x: x.roll(1, 1)),
    "arctan in place": ("arctan", lambda x: (x + 0).arctan_()),
    "taught in place": ("arctan_", lambda x: x.arctan()),
    "normal_": ("normal_", lambda x: x.clone().normal_()),
    "operator": ("mul", lambda x: x * 2),
    "remainder": ("remainder", lambda x: x % 2),
    "index": ("__getitem__", lambda x: x[:, :, 1:]),
    "and": ("__and__", lambda x: ((x > 0) & (x < 1)).to(x)),
    "__rsub__": ("sub", lambda x: 1 - x),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_method_of_tensors_by_name(case: str) -> None:
    asked: list[fx.Node] = []

    def rule(analysis: Analysis, node: fx.Node) -> Layout | None:
        asked.append(node)
        return analysis.layout(analysis.operand(node))

    name, run = METHODS[case]
    model, x = around(Calls(run)), torch.randn(IMAGE)
    bp.teach(name, rule)  # type: ignore[arg-type]
    assert reason_of(bp.plan(model, x), "4") is None and len(asked) == 1
    bp.forget(name)  # type: ignore[arg-type]
    bp.plan(model, x)
    assert len(asked) == 1


@pytest.mark.parametrize("operation", [Loops, rescaled, "roll", nn.ReLU, torch.roll])
def test_what_is_taught_can_be_taken_back(operation: Any) -> None:
    with pytest.raises(bp.PruneError, match=r"operation \(=.*\) has not been taught"):
        bp.forget(operation)
    bp.teach(operation, bp.rules.opaque)
    bp.teach(operation, bp.rules.same)
    bp.forget(operation)
    with pytest.raises(bp.PruneError, match=r"operation \(=.*\) has not been taught"):
        bp.forget(operation)


def test_the_rule_of_the_library_holds_again() -> None:
    model, x = around(nn.ReLU()), torch.randn(IMAGE)
    bp.teach(nn.ReLU, bp.rules.opaque)
    assert reason_of(bp.plan(model, x), "4") == "read by 5 (ReLU): it is opaque"
    bp.forget(nn.ReLU)
    assert reason_of(bp.plan(model, x), "4") is None


def test_an_opaque_submodule_is_traced_around() -> None:
    model = around(Heads(8))
    x = torch.randn(IMAGE)
    with pytest.raises(bp.PruneError, match="cannot be traced in 5"):
        bp.plan(model, x)
    for opaque in (["5"], "5"):
        plan, small = check_exact(copy.deepcopy(model), opaque=opaque)
        assert reason_of(plan, "4") == "read by 5 (Heads): it is opaque"
        assert small[4].out_channels == 8 and small[0].out_channels == 3


def test_an_opaque_submodule_that_is_unknown() -> None:
    x = torch.randn(IMAGE)
    for path in ("head", "5.outer", ""):
        with pytest.raises(bp.PruneError, match=f"opaque names the layer '{path}', which the mod"):
            bp.plan(around(Heads(8)), x, opaque=[path])


def test_a_buffer_that_is_not_saved_is_there_after_loading(tmp_path: Any) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(8))
            self.register_buffer("mask", torch.rand(8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.scale * self.mask).view(1, -1, 1, 1)

    bp.teach(Masked, bp.rules.channelwise)
    model = around(Masked())
    _, small = check_exact(model)
    bp.save(small, tmp_path / "small.safetensors")
    loaded = bp.load(model, tmp_path / "small.safetensors").eval()
    y = torch.randn(IMAGE).double()
    assert torch.equal(loaded(y), small(y))

"""What collapse and plan share, what they leave as it was, and how much memory they take."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from models import Net, relative, resnet, scramble, spelled_out, vgg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import branchprune as bp
from branchprune.blending.float64 import KeepsFloat64
from branchprune.graph.inputs import tensors

IMAGE = (2, 3, 8, 8)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def image(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGE, generator=generator, dtype=torch.float64).to(dtype)


def ready(model: nn.Module, dtype: torch.dtype = torch.float64, **options: Any) -> bp.Blended:
    """Return a blended model at α = 0, all its numbers changed."""
    model = scramble(model.to(dtype).eval())
    blended = scramble(bp.attach(model, bp.plan(model, image(dtype=dtype), **options)), seed=2)
    blended.alpha = 0
    assert isinstance(blended, bp.Blended)
    return blended


class Tied(nn.Module):
    """Two layers with one weight, read by a third whose inputs shrink; a norm with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.c, self.d = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.d.weight = self.c.weight
        self.norm = nn.BatchNorm2d(3)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.d(self.c(self.b(self.a(x).relu())).relu()))


def test_tied_weights_stay_tied() -> None:
    blended = ready(Tied())
    small = bp.collapse(blended)
    assert small.a.out_channels == 4
    assert small.c.weight is small.d.weight and small.norm is small.again
    assert len(list(small.parameters())) == len(list(Tied().parameters()))
    with torch.no_grad():
        small.c.weight.zero_()
    assert not bool(small.d.weight.any())
    assert bool(blended.model.c.weight.any())


MODELS = {"vgg": vgg, "resnet": resnet, "tied": Tied}
Models = pytest.mark.parametrize("name", MODELS)


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


@Models
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("some", [False, True])
def test_nothing_is_shared(name: str, dtype: torch.dtype, some: bool) -> None:
    blended = ready(MODELS[name](), dtype)
    if some:
        first, *others = blended.alpha
        blended.alpha = dict.fromkeys(others, 1.0)
        assert blended.alpha[first] == 0
    small = bp.collapse(blended)
    assert not storages(small) & storages(blended)
    before = [copy.deepcopy(net.state_dict()) for net in (blended, small)]
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.fill_(7)
    assert all(torch.equal(v, before[0][k]) for k, v in blended.state_dict().items())
    small.load_state_dict(before[1])
    with torch.no_grad():
        for key, tensor in blended.state_dict().items():
            if key != "alphas":
                tensor.fill_(3)
    assert all(torch.equal(v, before[1][k]) for k, v in small.state_dict().items())


@Models
@pytest.mark.parametrize("training", [False, True])
def test_the_blended_model_is_left_as_it_was(name: str, training: bool) -> None:
    blended = ready(MODELS[name](), torch.float32).train(training)
    blended(image(dtype=torch.float32)).sum().backward()
    with torch.no_grad():
        next(iter(blended.reduce.parameters())).add_(0.01)
    parameters = {k: (p, p.detach().clone(), p.grad) for k, p in blended.named_parameters()}
    grads = {k: None if p.grad is None else p.grad.clone() for k, (p, *_) in parameters.items()}
    buffers = {k: b.clone() for k, b in blended.named_buffers()}
    modes = [module.training for module in blended.modules()]
    extra = [set(vars(module)) for module in blended.modules()]
    random = torch.get_rng_state()
    small = bp.collapse(blended)
    for key, parameter in blended.named_parameters():
        same, value, grad = parameters[key]
        assert parameter is same and parameter.grad is grad and torch.equal(parameter, value)
        assert parameter.dtype == torch.float32
        assert grad is None or torch.equal(grad, grads[key])
    for key, buffer in blended.named_buffers():
        assert torch.equal(buffer, buffers[key]) and buffer.dtype == buffers[key].dtype
    assert modes == [module.training for module in blended.modules()]
    assert extra == [set(vars(module)) for module in blended.modules()]
    assert torch.equal(random, torch.get_rng_state())
    for module in (*blended.modules(), *small.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(module.training == training for module in small.modules())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_hooks_of_a_user_are_still_there() -> None:
    blended = ready(resnet())
    seen: list[int] = []
    blended.model[2].register_forward_hook(lambda *_: seen.append(1))
    small = bp.collapse(blended)
    assert [len(m._forward_hooks) for m in small.modules()].count(1) == 1
    seen.clear()
    small(image())
    assert seen == [1]


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_the_folds_are_those_of_float64(name: str) -> None:
    """A low dtype is rounded once, from the folds that float64 gives."""
    blended = ready(MODELS[name](), torch.float64)
    for dtype, eps in ((torch.float64, 0.0), (torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)):
        low = copy.deepcopy(blended).to(dtype)
        exact = bp.collapse(copy.deepcopy(low).to(torch.float64))
        found = bp.collapse(low)
        for key, value in found.state_dict().items():
            expected = exact.state_dict()[key]
            assert value.dtype == (dtype if expected.is_floating_point() else expected.dtype)
            assert torch.equal(value, expected.to(value.dtype)), key
            if expected.is_floating_point():
                error = (value.double() - expected).abs()
                assert bool((error <= eps * expected.abs() + 1e-38).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_every_dtype_computes_the_branch(name: str, dtype: torch.dtype) -> None:
    blended = ready(MODELS[name](), dtype)
    small = bp.collapse(blended)
    with torch.no_grad():
        expected = spelled_out(blended).double()(image(1))
        found = small.double()(image(1))
    precision = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    assert relative(expected, found) < precision


@pytest.mark.parametrize("which", ["all", "weights", "norms", "ends"])
def test_frozen_parameters(which: str) -> None:
    def frozen(name: str, parameter: Tensor) -> bool:
        ends = name.startswith(("reduce", "expand"))
        return which == "all" or (
            ends if which == "ends" else not ends and (parameter.dim() > 1) == (which == "weights")
        )

    blended = ready(resnet())
    for name, parameter in blended.named_parameters():
        parameter.requires_grad_(not frozen(name, parameter))
    flags = {name: p.requires_grad for name, p in blended.named_parameters()}
    small = bp.collapse(blended)
    for name, parameter in small.named_parameters():
        assert parameter.requires_grad == flags[f"model.{name}"]
    assert flags == {name: p.requires_grad for name, p in blended.named_parameters()}
    with torch.no_grad():
        assert relative(spelled_out(blended)(image(1)), small(image(1))) < 1e-10


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_collapse_under_any_mode_of_gradients(context: Any) -> None:
    blended = ready(vgg())
    with context():
        small = bp.collapse(blended)
    expected = bp.collapse(blended)
    with torch.no_grad():
        assert torch.equal(small(image(1)), expected(image(1)))


class RealBytes(TorchDispatchMode):
    """Follows how many bytes are taken by the tensors made inside it that have numbers."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage() for t in tensors((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        made = {t.untyped_storage() for t in tensors(output) if t.device.type == "cpu"}
        self.known.update(made - before)
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self.known))
        return output


def wide(width: int = 160) -> nn.Module:
    """A chain whose weights take far more memory than its activations."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(9):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 4, 1))


def size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_the_counter_sees_a_copy() -> None:
    model = wide()
    with RealBytes() as live:
        kept = copy.deepcopy(model).double()
    assert live.peak > 1.9 * size(model)
    del kept


def test_collapse_takes_little_more_than_the_result() -> None:
    model = wide().eval()
    blended = bp.attach(model, bp.plan(model, torch.randn(1, 3, 4, 4)))
    blended.alpha = 0
    gc.collect()
    with RealBytes() as live:
        small = bp.collapse(blended)
    total = size(blended) + live.peak
    # At once: the blended model, the small one in float64, and a layer or two in float64.
    assert total < 2.0 * size(blended)
    assert live.peak >= 2 * size(small)


class Attending(nn.Module):
    """Most weights are in modules that are called whole, and are left as they are."""

    def __init__(self, width: int = 128, depth: int = 8) -> None:
        super().__init__()
        make = nn.MultiheadAttention
        self.attention = nn.ModuleList(make(width, 4, batch_first=True) for _ in range(depth))
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        for attention in self.attention:
            x = x + attention(x, x, x)[0]
        return self.down(self.up(x).relu())


def test_collapse_holds_no_float64_copy_of_what_it_leaves() -> None:
    model = Attending().eval()
    plan = bp.plan(model, torch.randn(1, 3, 128), opaque=["attention"])
    blended = bp.attach(model, plan)
    assert set(blended.alpha) == {"up"}
    blended.alpha = 0
    gc.collect()
    with RealBytes() as live:
        small = bp.collapse(blended)
    # The small model, which is to share nothing, and one module of eight in float64.
    assert size(small) < live.peak < 1.5 * size(model)


class Nested(nn.Module):
    """A module that is called whole, and a part of it that is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention.out_proj(self.attention(x, x, self.down(self.up(x).relu()))[0])


def test_a_module_that_is_called_with_and_without_its_parent() -> None:
    model, x = scramble(Nested()).eval(), torch.randn(2, 3, 6)
    blended = scramble(bp.attach(model, bp.plan(model, x)), seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.up.out_features == 4
    with torch.no_grad():
        wide = x.double()
        mixed = small.double().down(small.up(wide).relu())
        expected = small.attention.out_proj(small.attention(wide, wide, mixed)[0])
        assert relative(expected, blended.double()(wide)) < 1e-5


def test_plan_holds_no_second_copy() -> None:
    model = wide().eval()
    gc.collect()
    with RealBytes() as live:
        plan = bp.plan(model, torch.randn(1, 3, 4, 4))
    assert plan.pruned
    assert live.peak < 0.1 * size(model)


def test_plan_holds_no_copy_afterwards() -> None:
    def floats() -> int:
        gc.collect()
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and t.numel() > 1000
        }
        return sum(found.values())

    model = wide().eval()
    before = floats()
    plan = bp.plan(model, torch.randn(1, 3, 4, 4))
    assert floats() - before < 0.1 * size(model)
    assert plan.pruned
    copied = copy.deepcopy(model)
    assert floats() - before > 0.9 * size(copied)


def test_plan_of_a_part_holds_no_second_copy() -> None:
    model = Net(lambda m, x: m.part(x) if float(x.sum()) < 1e9 else x, part=wide()).eval()
    gc.collect()
    with RealBytes() as live:
        bp.plan(model, torch.randn(1, 3, 4, 4), inside="part")
    assert live.peak < 0.1 * size(model)


class Constants(nn.Module):
    """Makes constants in float32, as forward does in ordinary code."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.embed, self.how = nn.Linear(8, 8), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "coordinates":
            x = x + torch.arange(4).float() / 7
        elif self.how == "of a size":
            x = x + (torch.arange(x.shape[3]).float() / 7).to(torch.float32)
        elif self.how == "spaced":
            x = x + torch.linspace(0, 1, 4) / 7 + (torch.zeros(4) + 0.1)
        elif self.how == "table":
            table = torch.zeros(2, 4)
            table[0], table[1:] = torch.arange(4.0), torch.linspace(0, 1, 4) / 7
            x = x * table[0] + table[1]
        elif self.how == "numbered":
            table = torch.zeros_like(torch.arange(4), dtype=torch.float32)
            table[torch.tensor([0, 2])] = x.mean((1, 2, 3))
            given = torch.tensor([0.1, 0.2, 0.3, 0.4])
            given[torch.arange(4) > 2] = x[0, 0, 0, :1]
            x = x + table + given + torch.arange(4).float().mul_(x.mean())
        elif self.how == "cast":
            x = x.half().float() + (x.mean() > 0).float() / 3
        y = self.a(x).relu()
        if self.how == "embedded":
            y = y * self.embed(torch.arange(8)[None] / 7)[:, :, None, None]
        return self.b(y)


@pytest.mark.parametrize(
    "how", ["coordinates", "of a size", "spaced", "table", "numbered", "cast", "embedded"]
)
def test_constants_keep_their_rounding(how: str) -> None:
    model, x = scramble(Constants(how)).eval(), torch.randn(2, 3, 4, 4)
    blended = bp.attach(model, bp.plan(model, x))
    scramble(blended, seed=2)
    blended.alpha = 0
    small = bp.collapse(blended)
    assert small.b.in_channels == 4
    assert torch.allclose(small(x), blended(x), 1e-4, 1e-5)


def test_what_is_computed_from_float64_is_float64() -> None:
    wide, narrow = torch.ones(3, dtype=torch.float64) / 3, torch.ones(3) / 3
    with KeepsFloat64():
        casts = (wide.float(), wide.half(), wide.to(torch.bfloat16), wide.to(dtype=torch.float32))
        sums = (
            wide + narrow,
            torch.cat([narrow, wide])[3:] + narrow,
            wide.sum(dtype=torch.float32),
        )
        kept = (narrow.double().float(), wide.int(), narrow * 2, narrow.half())
    assert all(torch.equal(cast, wide) for cast in casts)
    assert all(torch.equal(total, wide + narrow.double()) for total in sums[:2])
    assert torch.equal(sums[2], wide.sum())
    dtypes = (torch.float64, torch.int32, torch.float32, torch.float16)
    assert tuple(each.dtype for each in kept) == dtypes


class TwoNames(nn.Module):
    """A number for all channels that forward itself reads by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.gain = self.shift = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu()) * self.gain + self.shift
        return y


def test_a_parameter_that_forward_reads_by_two_names_stays_one() -> None:
    small = bp.collapse(ready(TwoNames()))
    assert small.a.out_channels == 4 and small.gain is small.shift


class Mixed(nn.Module):
    """A matrix, which forward itself reads, times what forward has cast to single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).to(torch.float32) @ self.mix


def test_a_cast_in_forward_meets_a_parameter_in_float64() -> None:
    model, x = Mixed(), image(dtype=torch.float32)
    blended = bp.attach(model, bp.plan(model, x))
    blended.alpha = 0
    assert bp.collapse(blended).a.out_channels == 4
